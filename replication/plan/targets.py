"""The stages behind one table."""

from grace.errors import InputError
from replication.base.messages import unknown
from replication.paper import load_tables
from replication.plan.needs import needs
from replication.settings.schema import REGIMES, Params

DEPLOYMENTS = "deploy"
"""The table of speed and memory, which shows no trained model."""
TUNED = "tuned"
"""The table whose rows are chosen from candidates."""


def find_table(name: str) -> str:
    """The short name of a table, by its short name or id.

    Raises:
        InputError: for an unknown name, with the known ones.
    """
    reported = load_tables()
    names = reported.short_names()
    if name in reported.tables:
        return reported.tables[name].short
    if not name:
        raise InputError(f"the table is empty; choose one of {', '.join(names)}")
    if name not in names:
        raise InputError(unknown(f"table {name!r}", name, names))
    return name


def stages_of(params: Params, table: str) -> list[str]:
    """The stages whose results a table shows, as DVC addresses them.

    Args:
        params: of the scale.
        table: short name.

    Raises:
        InputError: for a table of which this scale runs nothing.
    """
    if table == DEPLOYMENTS:
        return [f"deploy@{model}" for model in params.deploy.models]
    if table == REGIMES and params.regimes is not None:
        own = {REGIMES, params.regimes.pair}
        cells = [folder for folder, pair in params.folders.items() if pair == REGIMES]
        return [f"evaluate@{folder}" for folder in params.folders if folder in {*own, *cells}]
    folders = {model.folder for model in needs(params, load_tables()).get(table, ())}
    if not folders:
        raise InputError(
            f"scale {params.scale} runs nothing of table {table}; choose another table or scale"
        )
    stages = [f"evaluate@{folder}" for folder in params.folders if folder in folders]
    if table == TUNED and params.tuning is not None:
        stages += [f"tuning@{pair}" for pair in params.tuning.pairs]
    return stages

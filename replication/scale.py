"""The pipeline at a scale; see :mod:`replication.settings.scales`."""

from replication.settings.scales import main

if __name__ == "__main__":
    main()

"""INT4 quantization-aware training of vision-language models under gated, relational distillation.

The method of GRACE (arXiv 2601.22709): ``grace.quantization`` (group-wise learned step sizes),
``grace.distillation`` (confidence-gated decoupled distillation, relational alignment, the
information-bottleneck controller), ``grace.models`` (one adapter per model family), ``grace.data``
(conversations and batches of them), ``grace.training`` (the Hugging Face ``Trainer`` with a frozen
teacher), ``grace.int4`` and ``grace.decoding`` (packed layers and greedy decoding on them) and
``grace.export`` (checkpoints that other libraries load).
"""

from grace_torchvision import install

__version__ = "0.2.0"

install()

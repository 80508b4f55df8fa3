"""Files of models that several processes hold: checkpoints of torch.distributed."""

from pemncodec.distributed.reader import PemnReader as PemnReader
from pemncodec.distributed.writer import PemnWriter as PemnWriter

"""Building blocks: each a Linen module or a pure function on `[B, H, W, C]` maps."""

from se_flax.nn.activation import relu_of_sum as relu_of_sum
from se_flax.nn.activation import silu as silu
from se_flax.nn.batch_norm import Affine as Affine
from se_flax.nn.batch_norm import BatchNorm as BatchNorm
from se_flax.nn.batch_norm import FoldedNorm as FoldedNorm
from se_flax.nn.conv import Conv as Conv
from se_flax.nn.pool import adaptive_avg_pool as adaptive_avg_pool
from se_flax.nn.pool import avg_pool as avg_pool
from se_flax.nn.pool import max_pool as max_pool
from se_flax.nn.shake import shake as shake
from se_flax.nn.squeeze_excite import ACTIVATION as ACTIVATION
from se_flax.nn.squeeze_excite import EXCITE as EXCITE
from se_flax.nn.squeeze_excite import SQUEEZE as SQUEEZE
from se_flax.nn.squeeze_excite import SqueezeExcite as SqueezeExcite
from se_flax.nn.stock import stock_operations as stock_operations

"""Networks by name. Importing this package registers every family."""

from se_flax.models.registry import ModelInfo as ModelInfo
from se_flax.models.registry import PaperResult as PaperResult
from se_flax.models.registry import create_model as create_model
from se_flax.models.registry import list_models as list_models
from se_flax.models.registry import model_info as model_info
from se_flax.models.resnet import ResNet as ResNet

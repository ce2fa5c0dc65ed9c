"""Networks by name. Importing this package registers every family."""

from se_flax.models.bn_inception import BNInception as BNInception
from se_flax.models.efficientnet import EfficientNet as EfficientNet
from se_flax.models.fold import fold_batch_norm as fold_batch_norm
from se_flax.models.inception_resnet_v2 import InceptionResNetV2 as InceptionResNetV2
from se_flax.models.mobilenet import MobileNet as MobileNet
from se_flax.models.mobilenet_v3 import MobileNetV3 as MobileNetV3
from se_flax.models.network import Network as Network
from se_flax.models.preact_resnet import PreActResNet as PreActResNet
from se_flax.models.registry import Feature as Feature
from se_flax.models.registry import ModelInfo as ModelInfo
from se_flax.models.registry import PaperResult as PaperResult
from se_flax.models.registry import check_model as check_model
from se_flax.models.registry import create_model as create_model
from se_flax.models.registry import list_models as list_models
from se_flax.models.registry import model_info as model_info
from se_flax.models.registry import timm_architectures as timm_architectures
from se_flax.models.registry import twins as twins
from se_flax.models.regnet import RegNet as RegNet
from se_flax.models.resnet import ResNet as ResNet
from se_flax.models.shake_shake import ShakeResNet as ShakeResNet
from se_flax.models.shufflenet import ShuffleNet as ShuffleNet
from se_flax.models.vgg import VGG as VGG

"""timm's architectures whose network is one here, and its name here."""

ARCHITECTURES = {
    'legacy_senet154': 'senet154',
    'legacy_seresnet18': 'timm_legacy_seresnet18',
    'legacy_seresnet34': 'timm_legacy_seresnet34',
    'legacy_seresnet50': 'se_resnet50',
    'legacy_seresnet101': 'se_resnet101',
    'legacy_seresnet152': 'se_resnet152',
    'legacy_seresnext26_32x4d': 'timm_legacy_seresnext26_32x4d',
    'legacy_seresnext50_32x4d': 'se_resnext50_32x4d',
    'legacy_seresnext101_32x4d': 'se_resnext101_32x4d',
    **{
        name: f'timm_{name}'
        for name in (
            *('resnet18', 'resnet34', 'resnet50', 'resnet101', 'resnet152'),
            *('resnext50_32x4d', 'resnext101_32x4d', 'resnext101_32x8d', 'resnext101_32x48d'),
            'resnext101_64x4d',
            *('seresnet18', 'seresnet34', 'seresnet50', 'seresnet101', 'seresnet152'),
            *('seresnext50_32x4d', 'seresnext101_32x4d'),
            *('seresnext101_32x8d', 'seresnext101_64x4d', 'senet154'),
        )
    },
    'vgg16_bn': 'vgg16',
    'inception_resnet_v2': 'inception_resnet_v2',
}

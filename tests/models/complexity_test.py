"""The table that `se-flax models` prints, against the networks themselves."""

import importlib.resources

from se_flax.models import create_model, list_models, model_info
from se_flax.models.complexity import count


def test_counts_table_is_what_the_networks_have(golden):
    rows = ['name,params,macs']
    for name in list_models():
        model, size = create_model(name), model_info(name).input_size
        params, macs = count(model, size)
        rows.append(f'{name},{params},{macs}')
    golden(importlib.resources.files('se_flax.models') / 'counts.csv', '\n'.join(rows) + '\n')

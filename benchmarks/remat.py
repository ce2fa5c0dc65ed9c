"""Measures what `remat` saves and costs on a CPU: `python benchmarks/remat.py`.

Compares the training step in float32 that stores its maps with the one that computes them twice.
They take turns in one process; memory is that reported by XLA. Needs the extra `torch`, like the
other benchmarks. Writes `benchmarks/results/remat.json` and `remat.md`.
"""

import argparse
import statistics

from record import processor, save, versions
from sides import compare, median_ratio, ours

from se_flax.tables import markdown

NETWORKS = {'se_resnet50': (8, 224), 'se_wrn16_8': (32, 32)}  # images, pixels


def measure(network, rounds):
    """Returns the row of a network."""
    cell = NETWORKS[network]
    forms = {'kept': ours(network, *cell), 'twice': ours(network, *cell, remat=True)}
    seconds = compare({form: runs['train'] for form, (runs, _) in forms.items()}, rounds)
    return {
        'network': network,
        'images': cell[0],
        'seconds': {form: statistics.median(s) for form, s in seconds.items()},
        'ratio': median_ratio(seconds, 'twice', ours='kept'),
        'bytes': {form: told['bytes'] for form, (_, told) in forms.items()},
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    parser.add_argument('--rounds', type=int, default=7)
    args = parser.parse_args()
    rows = [measure(network, args.rounds) for network in NETWORKS]
    table = [('step of', 'images', 'ms', 'with remat', 'ratio', 'GiB', 'with remat')]
    for row in rows:
        ms, gib = (
            [f'{scale * row[what][form]:.4g}' for form in ('kept', 'twice')]
            for what, scale in (('seconds', 1e3), ('bytes', 2**-30))
        )
        table.append((row['network'], str(row['images']), *ms, f'{row["ratio"]:.2f}', *gib))
    head = (
        f'{processor()}; {versions("se_flax", "jax", "jaxlib", "flax")}; float32; medians of '
        f'{args.rounds} rounds; GiB of arguments and temporaries'
    )
    save('remat', head, markdown(table), rows)
    print(head, markdown(table), sep='\n\n')


if __name__ == '__main__':
    main()

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from se_flax.data import TrainTransform, open_dataset, train_batches
from se_flax.data.dataset import SPAN, Dataset
from se_flax.data.decode import DecodeError
from se_flax.data.sampling import class_order, epoch_order, make_sampler, repeated
from se_flax.errors import UserError

pytestmark = pytest.mark.quick


class Labelled(Dataset):
    """Example i is one pixel that holds i and has label `label_of[i]`; None cannot be read."""

    def __init__(self, label_of):
        names = map(str, range(1 + max(label or 0 for label in label_of)))
        super().__init__('labelled', 'train', tuple(names))
        object.__setattr__(self, 'label_of', label_of)

    def __len__(self):
        return len(self.label_of)

    def read(self, i):
        if self.label_of[i] is None:
            raise DecodeError('bit rot')
        return np.full((1, 1, 3), i % 256, np.uint8), self.label_of[i]


def draw(label_of, count, seed=0, sampling='class_aware'):
    sampler = make_sampler(sampling, Labelled(label_of), seed)
    return [sampler(position) for position in range(count)]


def test_the_orders_are_these():
    """A change of these orders changes every run, and must be announced."""
    assert epoch_order(0, 0, 10).tolist() == [4, 6, 2, 7, 3, 5, 9, 0, 8, 1]
    assert epoch_order(1, 2, 10).tolist() == [8, 5, 6, 0, 9, 1, 4, 3, 7, 2]
    assert class_order(0, 0, 0, 10).tolist() == [5, 1, 6, 3, 4, 8, 9, 7, 2, 0]
    assert draw([0, 1, 0, 1, 0, 2], 12) == [5, 2, 3, 5, 4, 1, 5, 3, 0, 5, 1, 0]


@given(
    label_of=st.lists(st.integers(0, 6), min_size=1, max_size=40),
    seed=st.integers(0, 2**63),
)
@example(label_of=[5], seed=0)  # classes without images take no turn
@settings(max_examples=50, deadline=None)
def test_classes_and_their_images_take_turns(label_of, seed):
    classes = sorted(set(label_of))
    images = draw(label_of, 50 * len(classes), seed)
    for one_pass in np.reshape(images, (50, -1)):
        assert sorted(label_of[i] for i in one_pass) == classes
    for label in classes:
        visits = [i for i in images if label_of[i] == label]
        members = [i for i, other in enumerate(label_of) if other == label]
        for turn in range(50 // len(members)):
            assert sorted(visits[turn * len(members) :][: len(members)]) == members


def test_each_list_is_shuffled_anew():
    label_of = [0] * 30 + [1] * 30
    images = np.array(draw(label_of, 120))
    assert len({tuple(label_of[i] for i in pair) for pair in images.reshape(-1, 2)}) == 2
    first, second = images[images < 30].reshape(2, 30).tolist()
    other = [i - 30 for i in images if i >= 30][:30]
    assert len({tuple(order) for order in (first, second, other, range(30))}) == 4
    assert draw(label_of, 120, seed=1) != images.tolist()


def test_rare_classes_come_as_often():
    labels = np.array([0] * 90 + [1] * 9 + [2])
    assert np.bincount(labels[draw(labels.tolist(), 300)]).tolist() == [100, 100, 100]


def test_labels_are_those_of_the_examples(image_folder):
    label_of = np.random.default_rng(0).integers(9, size=3 * SPAN + 5).tolist()
    assert Labelled(label_of).labels().tolist() == label_of
    folder = open_dataset(f'folder:{image_folder}', 'train')
    assert folder.labels().tolist() == [folder.read(i)[1] for i in range(len(folder))]
    assert folder.labels().dtype == Labelled(label_of).labels().dtype == np.int32


def test_an_unreadable_record_is_left_out(caplog):
    assert sorted(draw([0, None, 1, 0, None], 4)) == [0, 2, 2, 3]
    assert 'labelled/train/4: bit rot; it has no label' in caplog.text
    with pytest.raises(UserError, match="no record of 'labelled' can be read"):
        draw([None, None], 1)


@given(
    size=st.integers(1, 60),
    batch_size=st.integers(1, 50),
    repeats=st.integers(1, 5),
    seed=st.integers(0, 2**63),
)
@settings(max_examples=50, deadline=None)
def test_repeats_visit_each_example_so_often_at_a_distance(size, batch_size, repeats, seed):
    plain = make_sampler('shuffle', Labelled([0] * size), seed)
    sampler = repeated(plain, repeats, batch_size)
    distance = -(-batch_size // repeats)
    turn = distance * repeats
    for start in range(0, 3 * turn, turn):
        visited = [sampler(start + i) for i in range(turn)]
        first = [plain(start // repeats + i) for i in range(distance)]
        assert visited == first * repeats
    # In `repeats` epochs of whole turns, each example comes as often as the others.
    counts = np.bincount([sampler(i) for i in range(size * turn)], minlength=size)
    assert set(counts) == {turn}


def test_views_of_an_example_differ():
    dataset = open_dataset('synthetic', 'train')
    options = {'batch_size': 30, 'seed': 1, 'start_step': 0, 'num_steps': 1, 'repeats': 3}
    [batch] = train_batches(dataset, TrainTransform(16), **options)
    labels, views = batch['label'].reshape(3, 10), batch['image'].reshape(3, 10, -1)
    assert (labels == labels[0]).all()
    assert all(len({view.tobytes() for view in views[:, i]}) == 3 for i in range(10))


def batches(start=0, **options):
    return train_batches(
        open_dataset('fashion_mnist_mini', 'eval'),  # workers can import it, unlike a test's class
        TrainTransform(4, 'none'),
        batch_size=20,
        seed=4,
        start_step=start,
        num_steps=9,
        sampling='class_aware',
        **options,
    )


def pixels(run):
    return [batch['image'].ravel().tolist() for batch in run]


@pytest.mark.parametrize(('repeats', 'num_workers'), [(1, 0), (3, 1)])
def test_a_start_processes_and_workers_change_nothing(repeats, num_workers):
    want = pixels(batches(repeats=repeats))
    assert pixels(batches(start=5, repeats=repeats)) == want[5:]
    workers = {'num_threads': 1, 'num_workers': num_workers}
    assert pixels(batches(repeats=repeats, **workers)) == want
    parts = [pixels(batches(process_index=p, process_count=2, repeats=repeats)) for p in range(2)]
    assert [first + second for first, second in zip(*parts, strict=True)] == want


def test_unknown_sampling():
    with pytest.raises(UserError, match="unknown sampling 'class-aware': did you mean class_aw"):
        make_sampler('class-aware', Labelled([0]), 0)

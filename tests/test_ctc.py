"""The CTC loss against PyTorch's and against all alignments."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lstm_jax import training

B, T, K, N = 5, 7, 4, 3
LOGITS = np.random.default_rng(0).normal(size=(B, T, K)).astype(np.float32)
LABELS = np.array([[1, 2, 3], [1, 1, 2], [3, 3, 3], [2, 0, 0], [0, 0, 0]], np.int32)
LENGTHS = np.array([7, 5, 5, 3, 2], np.int32)
LABEL_LENGTHS = np.array([3, 3, 3, 1, 0], np.int32)
SIZES = {"lengths": LENGTHS, "label_lengths": LABEL_LENGTHS}


def by_hand(logits, labels, blank=0):
    """The sum over all alignments of one row, in float64."""
    logs = logits.astype(np.float64)
    logs = logs - np.log(np.exp(logs).sum(-1, keepdims=True))
    total = 0.0
    for path in itertools.product(range(logits.shape[-1]), repeat=len(logits)):
        runs = [label for label, _ in itertools.groupby(path)]
        if [label for label in runs if label != blank] == list(labels):
            total += np.exp(sum(logs[t, label] for t, label in enumerate(path)))
    return -np.log(total)


@pytest.mark.parametrize("jitted", [False, True])
def test_agrees_with_all_alignments(jitted):
    expected = [
        by_hand(LOGITS[b, : LENGTHS[b]], LABELS[b, : LABEL_LENGTHS[b]])
        for b in range(B)
    ]
    loss = lambda logits, labels, sizes: training.ctc_loss(logits, labels, **sizes)
    loss = jax.jit(loss) if jitted else loss
    assert float(loss(LOGITS, LABELS, SIZES)) == pytest.approx(np.mean(expected), 1e-5)
    for b in range(B):
        sizes = {name: value[b : b + 1] for name, value in SIZES.items()}
        alone = loss(LOGITS[b : b + 1], LABELS[b : b + 1], sizes)
        assert float(alone) == pytest.approx(expected[b], 1e-5)


@pytest.mark.parametrize("blank", [0, 3])
def test_agrees_with_pytorch(blank):
    torch = pytest.importorskip("torch")
    labels = (LABELS + blank) % K if blank else LABELS
    labels = np.where(labels == blank, (blank + 1) % K, labels).astype(np.int32)

    def total(logits):
        return training.ctc_loss(
            logits, labels, **SIZES, blank=blank, weighted=True
        ).total

    value, gradient = jax.value_and_grad(total)(jnp.asarray(LOGITS))
    given = torch.tensor(LOGITS, requires_grad=True)
    theirs = torch.nn.functional.ctc_loss(
        given.log_softmax(-1).transpose(0, 1),
        torch.tensor(labels),
        torch.tensor(LENGTHS),
        torch.tensor(LABEL_LENGTHS),
        blank=blank,
        reduction="sum",
        zero_infinity=True,
    )
    theirs.backward()
    assert float(value) == pytest.approx(theirs.item(), 1e-5)
    np.testing.assert_allclose(gradient, given.grad.numpy(), atol=1e-5)


def test_rows_that_cannot_be_aligned_weigh_nothing():
    lengths = np.array([7, 3, 4, 3, 2], np.int32)  # Rows 1 and 2 need 4 and 5.
    fits = training.ctc_alignable(LABELS, lengths=lengths, label_lengths=LABEL_LENGTHS)
    assert fits.tolist() == [True, False, False, True, True]

    def loss(logits, rows):
        sizes = {"lengths": lengths[rows], "label_lengths": LABEL_LENGTHS[rows]}
        return training.ctc_loss(logits, LABELS[rows], **sizes, weighted=True)

    good = np.array([0, 3, 4])
    whole, some = loss(LOGITS, np.arange(B)), loss(LOGITS[good], good)
    assert int(whole.weight) == int(some.weight) == 3
    assert float(whole.total) == pytest.approx(float(some.total), 1e-6)
    slope = jax.grad(lambda x: loss(x, np.arange(B)).mean())(jnp.asarray(LOGITS))
    alone = jax.grad(lambda x: loss(x, good).mean())(jnp.asarray(LOGITS[good]))
    assert not slope[1:3].any()
    np.testing.assert_allclose(slope[good], alone, atol=1e-6)
    none = training.ctc_loss(
        LOGITS[1:3], LABELS[1:3], lengths=lengths[1:3], weighted=True
    )
    assert (float(none.total), int(none.weight)) == (0, 0)


def test_padding_may_hold_anything_and_a_class_be_never():
    frames = np.arange(T)[None] < LENGTHS[:, None]
    dirty = np.where(frames[..., None], LOGITS, np.nan)
    labels = np.where(np.arange(N)[None] < LABEL_LENGTHS[:, None], LABELS, -7)
    loss = lambda logits, labels: training.ctc_loss(logits, labels, **SIZES)
    clean = jax.value_and_grad(loss)(jnp.asarray(LOGITS), LABELS)
    value, slope = jax.value_and_grad(loss)(jnp.asarray(dirty), labels)
    assert float(value) == float(clean[0])
    np.testing.assert_array_equal(slope, clean[1])
    never = LOGITS[3:4].copy()
    never[..., 1] = -np.inf
    value, slope = jax.value_and_grad(lambda x: training.ctc_loss(x, LABELS[3:4, :1]))(
        jnp.asarray(never)
    )
    without = by_hand(np.delete(never[0], 1, -1), [1])  # Label 2 is then the first.
    assert float(value) == pytest.approx(without, 1e-5)
    assert np.isfinite(slope).all() and not slope[..., 1].any()


def test_no_frames_and_no_labels():
    empty = training.ctc_loss(np.zeros((2, 0, K), np.float32), np.zeros((2, 0), int))
    assert float(empty) == 0
    blanks = training.ctc_loss(LOGITS, np.zeros((B, 0), int))
    logs = jax.nn.log_softmax(LOGITS)[..., 0].sum(-1)
    assert float(blanks) == pytest.approx(-float(logs.mean()), 1e-6)
    none = training.ctc_loss(
        np.zeros((1, 0, K), np.float32), np.ones((1, 1), int), weighted=True
    )
    assert (float(none.total), int(none.weight)) == (0, 0)


def test_half_precision_is_summed_in_float32():
    narrow = jnp.asarray(LOGITS, jnp.bfloat16)
    one = training.ctc_loss(narrow, LABELS, **SIZES)
    two = training.ctc_loss(narrow.astype(jnp.float32), LABELS, **SIZES)
    assert one.dtype == jnp.float32 and float(one) == float(two)


@pytest.mark.parametrize("label", [-1, K, 0])
def test_labels_that_are_none(label):
    labels = LABELS.copy()
    labels[0, 1] = label
    with pytest.raises(ValueError, match=f"labels: expected .* blank, 0, got {label}"):
        training.ctc_loss(LOGITS, labels, **SIZES)
    loss = jax.jit(lambda labels: training.ctc_loss(LOGITS, labels, **SIZES))
    assert np.isnan(loss(labels))


def test_what_does_not_fit_is_told():
    with pytest.raises(ValueError, match=r"logits: expected shape \[B, T, K\]"):
        training.ctc_loss(LOGITS[0], LABELS)
    with pytest.raises(ValueError, match="blank: expected a class from 0 to 3, got 4"):
        training.ctc_loss(LOGITS, LABELS, blank=4)
    with pytest.raises(ValueError, match=r"labels: expected shape \[B, N\] with B = 5"):
        training.ctc_loss(LOGITS, LABELS[:2])
    with pytest.raises(TypeError, match="labels: expected an integer dtype"):
        training.ctc_loss(LOGITS, LABELS.astype(np.float32))
    with pytest.raises(ValueError, match="lengths"):
        training.ctc_loss(LOGITS, LABELS, lengths=LENGTHS + 9)


@pytest.mark.parametrize("jitted", [False, True])
@pytest.mark.parametrize("blank", [0, 2])
def test_a_row_without_a_way_around_classes_at_never_weighs_nothing(jitted, blank):
    """Against all alignments, with a third of the classes at -inf."""
    rng = np.random.default_rng(blank)
    rows, steps, classes = 60, 5, 4
    logits = rng.normal(size=(rows, steps, classes)).astype(np.float32)
    logits[rng.random(logits.shape) < 0.35] = -np.inf
    labels = (rng.integers(1, classes, (rows, N)) + blank) % classes
    sizes = {
        "lengths": rng.integers(0, steps + 1, rows),
        "label_lengths": rng.integers(0, N + 1, rows),
    }
    expected = []
    for row, frames, number in zip(logits, *sizes.values(), strict=True):
        row, nowhere = row[:frames].copy(), np.isinf(row[:frames]).all(-1)
        row[nowhere] = 0  # None is possible there: neither has the row a way.
        truth = labels[len(expected), :number]
        with np.errstate(divide="ignore"):
            expected.append(np.inf if nowhere.any() else by_hand(row, truth, blank))
    expected = np.array(expected)
    fits = np.isfinite(expected)
    assert 10 < fits.sum() < 50

    def loss(logits):
        given = {**sizes, "blank": blank, "weighted": True}
        return training.ctc_loss(logits, labels, **given)

    found = (jax.jit(loss) if jitted else loss)(logits)
    frames = sizes["lengths"] > 0
    assert int(found.weight) == (fits & frames).sum()
    assert float(found.total) == pytest.approx(expected[fits].sum(), rel=1e-5)
    slope = jax.grad(lambda x: loss(x).total)(jnp.asarray(logits))
    assert np.isfinite(slope).all() and not slope[~fits].any()
    assert slope[fits & frames].any()
    alignable = training.ctc_alignable(labels, **sizes, logits=logits, blank=blank)
    np.testing.assert_array_equal(alignable, fits)


@pytest.mark.parametrize("blank", [True, 1.0, "1"])
def test_a_blank_that_is_no_class(blank):
    for call in (training.ctc_loss, training.ctc_alignable):
        logits = {"logits": LOGITS, "lengths": LENGTHS}
        with pytest.raises(TypeError, match="blank: expected an integer"):
            call(labels=LABELS, blank=blank, **logits)
    labels, given = np.where(LABELS == 1, 2, LABELS), {"label_lengths": LABEL_LENGTHS}
    one, two = (
        training.ctc_loss(LOGITS, labels, blank=blank, **given)
        for blank in (1, jnp.int32(1))
    )
    assert float(one) == float(two)

"""Batches, epoch after epoch, from where training stands."""

from __future__ import annotations

from typing import Any

import jax

from lstm_jax.distributed.batches import ended
from lstm_jax.training.runs import resuming


class Feed:
    """The batches of a source, one ahead of training.

    Attributes:
        epoch: whole passes that are done.
        index: batches of this pass that were taken.
        at_end: whether none is left of this pass.
        before: the digest of the batch before the next one, where the first ones were
            passed over.
        continues: whether the rows of a batch go on where those of the one before
            ended.
        once: whether the source is an iterator, for one epoch.
    """

    def __init__(
        self,
        name: str,
        source: Any,
        epoch: int = 0,
        index: int = 0,
        *,
        continues: bool | None = None,
    ):
        """Goes to a batch of an epoch.

        Args:
            name: of the source, for errors.
            source: ``epoch -> batches``, or batches that can be gone through again, or
                an iterator for one epoch.
            epoch: whole passes that are done.
            index: batches of this pass that are done.
            continues: whether rows go on; what the batches themselves say if None.
        """
        self.name, self.source, self.epoch = name, source, epoch
        self._told = continues
        if not callable(source) and not hasattr(source, "__iter__"):
            raise TypeError(
                f"{name}: expected batches, or a function from the number of an epoch "
                f"to batches, got {type(source).__name__}."
            )
        if hasattr(source, "__array__"):
            raise TypeError(
                f"{name}: expected batches, such as a list of them, got one array. "
                "lstm_jax.data.shuffled_batches(examples, batch_size) cuts it into "
                "batches; [xs] is one batch."
            )
        self._open()
        self.index = index
        # Before the next one is fetched: a loader may use the memory of one for it.
        self.before = resuming.digest(self._skip(index)) if index else None
        self._look()

    def _open(self) -> None:
        source: Any = self.source
        batches: Any = source(self.epoch) if callable(source) else source
        said = any(getattr(one, "continues", False) for one in (source, batches))
        self.continues = said if self._told is None else self._told
        self._batches = iter(batches)
        self.once = self._batches is self.source

    def _skip(self, number: int) -> Any:
        """Passes over batches and returns the last of them."""
        passed, batch = 0, None
        while passed < number and (ahead := next(self._batches, _END)) is not _END:
            passed, batch = passed + 1, ahead
        if passed < number:
            raise ValueError(
                f"{self.name}: expected at least {number} batches in epoch "
                f"{self.epoch}, which were trained on before, got {passed}. Is this "
                "other data?"
            )
        return batch

    def _look(self) -> None:
        self._ahead = next(self._batches, _END)
        self.at_end = self._ahead is _END
        if self.at_end:
            ended(self.name, self.index)
        leaves = () if self.at_end else jax.tree.leaves(self._ahead)
        shapes = [list(leaf.shape) for leaf in leaves if getattr(leaf, "shape", ())]
        if shapes and not any(shape[0] for shape in shapes):
            raise ValueError(
                f"{self.name}: expected rows in each batch, got none in batch "
                f"{self.index} of epoch {self.epoch}, of shapes "
                f"{', '.join(map(str, shapes))}."
            )

    def advance(self) -> None:
        """Begins the next epoch."""
        if self.once:
            raise ValueError(
                f"{self.name}: expected more batches, got an iterator that ended after "
                f"{self.index}. Pass what can be gone through again, such as a list or "
                "a function from the number of an epoch to batches."
            )
        if not self.index:
            raise ValueError(f"{self.name}: expected batches, got none.")
        self.epoch, self.index = self.epoch + 1, 0
        self._open()
        self._look()
        if self.at_end:
            raise ValueError(
                f"{self.name}: expected batches in epoch {self.epoch}, got none."
            )

    @property
    def ahead(self) -> Any:
        """The next batch."""
        return self._ahead

    def take(self) -> None:
        """Counts the next batch as trained on, and looks for the one after it.

        A loader may use the memory of the first for the second: done with it, then.
        """
        self.index += 1
        self._look()


def is_iterator(source: Any) -> bool:
    """Whether a source can be gone through but once."""
    return hasattr(source, "__next__") and iter(source) is source


_END = object()

"""The schedule of EoMT's mask annealing (arXiv 2503.19108, section 3.3)."""

from __future__ import annotations

from dataclasses import dataclass

from detectron2.config import CfgNode

__all__ = ["Annealing"]


@dataclass(frozen=True)
class Annealing:
    """When the masks of each of the last n blocks are lifted: one block after the other."""

    enabled: bool = True
    """False: all masks remain."""
    start_steps: tuple[int, ...] = ()
    """For each block, the optimizer step at which its masks begin to be lifted.

    Empty: the masks of the first block are lifted in the second sixth of the training, those of the
    last one in the fifth; the last sixth runs without masks (as in the published schedules).
    """
    end_steps: tuple[int, ...] = ()
    """For each block, the step at which all its masks are lifted."""
    power: float = 0.9
    """Exponent of the share that remains, as in the polynomial schedule of the learning rate."""

    @classmethod
    def from_config(cls, cfg: CfgNode) -> Annealing:
        """Read ``MODEL.EOMT.ANNEALING``.

        Raises:
            ValueError: if there is not one start and one later end for each block, or if an end
                lies after ``SOLVER.MAX_ITER``.
        """
        node, blocks = cfg.MODEL.EOMT.ANNEALING, cfg.MODEL.EOMT.NUM_BLOCKS
        starts, ends = tuple(node.START_STEPS), tuple(node.END_STEPS)
        lists = f"MODEL.EOMT.ANNEALING.START_STEPS is {list(starts)} and END_STEPS {list(ends)}"
        if (starts or ends) and not len(starts) == len(ends) == blocks:
            raise ValueError(
                f"{lists}; expected one number for each of the {blocks} blocks of "
                "MODEL.EOMT.NUM_BLOCKS in both, or two empty lists."
            )
        if any(not 0 <= start < end for start, end in zip(starts, ends, strict=True)):
            raise ValueError(f"{lists}; each start must be 0 or more, and less than its end.")
        if node.ENABLED and ends and max(ends) > cfg.SOLVER.MAX_ITER:
            raise ValueError(
                f"{lists}, but training ends at SOLVER.MAX_ITER, {cfg.SOLVER.MAX_ITER}: set both "
                "lists to [] for a schedule that fits the training."
            )
        return cls(node.ENABLED, starts, ends, node.POWER)

    def remaining(self, step: int, max_steps: int, num_blocks: int) -> list[float]:
        """Return the share of masks of each block that remain after ``step`` optimizer steps."""
        if not self.enabled:
            return [1.0] * num_blocks
        steps = list(zip(self.start_steps, self.end_steps, strict=True))
        if not steps:
            steps = _default_steps(max_steps, num_blocks)
        return [self._share(step, start, end) for start, end in steps]

    def _share(self, step: int, start: int, end: int) -> float:
        if step < start:
            return 1.0
        return 0.0 if step >= end else (1 - (step - start) / (end - start)) ** self.power


def _default_steps(max_steps: int, num_blocks: int) -> list[tuple[int, int]]:
    """Return the start and end of each block for a training without given steps."""
    sixth = max_steps // 6
    gaps = max(num_blocks - 1, 1)
    # rounded half up: floor(sixth + 3·sixth·index/gaps + 1/2), in integers
    starts = [
        (2 * sixth * gaps + 6 * sixth * index + gaps) // (2 * gaps) for index in range(num_blocks)
    ]
    return [(start, start + sixth) for start in starts]

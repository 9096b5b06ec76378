"""The formulas of the paper as slow, obvious loops, which tests compare the package with.

Nothing here imports the package. Inputs are tensors, results are float64; autograd can
differentiate the losses.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

ALPHA, GAMMA = 0.25, 2.0
ZERO = torch.zeros((), dtype=torch.float64)


# Resizing


def upsample(masks: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize …×h×w to …×H×W bilinearly: pixel centres are at x + ½, the border is repeated."""
    height, width = masks.shape[-2:]
    rows = []
    for y in range(size[0]):
        top, bottom, down = _neighbours(y, size[0], height)
        row = []
        for x in range(size[1]):
            left, right, across = _neighbours(x, size[1], width)
            above = (1 - across) * masks[..., top, left] + across * masks[..., top, right]
            below = (1 - across) * masks[..., bottom, left] + across * masks[..., bottom, right]
            row.append((1 - down) * above + down * below)
        rows.append(torch.stack(row, dim=-1))
    return torch.stack(rows, dim=-2)


def _neighbours(index: int, size: int, source: int) -> tuple[int, int, float]:
    """Return the two source pixels around target pixel ``index``, and the second one's weight."""
    position = max((index + 0.5) * source / size - 0.5, 0.0)
    first = int(position)
    return first, min(first + 1, source - 1), position - first


def pick_nearest(masks: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize N×H×W to N×h×w: target (y, x) is the source pixel (⌊y·H/h⌋, ⌊x·W/w⌋)."""
    picked = masks.new_zeros(len(masks), *size)
    height, width = masks.shape[-2:]
    for y in range(size[0]):
        for x in range(size[1]):
            picked[:, y, x] = masks[:, y * height // size[0], x * width // size[1]]
    return picked


# Losses


def focal(logits: Tensor, mask: Tensor, alpha: float = ALPHA, gamma: float = GAMMA) -> Tensor:
    """Return the mean over pixels of ``-α_t (1 - p_t)^γ log p_t``; p_t: see `cross_entropy`."""
    total = ZERO
    for x, inside in zip(logits.double().flatten(), mask.bool().flatten(), strict=True):
        p_t = torch.sigmoid(x) if inside else torch.sigmoid(-x)
        weight = alpha if inside else 1 - alpha
        total = total - weight * (1 - p_t) ** gamma * torch.log(p_t)
    return total / mask.numel()


def cross_entropy(logits: Tensor, mask: Tensor) -> Tensor:
    """Return the mean over pixels of ``-log p_t``, p_t: the probability of the ground truth."""
    total = ZERO
    for x, inside in zip(logits.double().flatten(), mask.bool().flatten(), strict=True):
        total = total - torch.log(torch.sigmoid(x) if inside else torch.sigmoid(-x))
    return total / logits.numel()


def dice(logits: Tensor, mask: Tensor) -> Tensor:
    """Return ``1 - (2 Σpt + 1) / (Σp + Σt + 1)``, p: probabilities, t: the mask."""
    both = sum_p = sum_t = ZERO
    for x, inside in zip(logits.double().flatten(), mask.bool().flatten(), strict=True):
        p, t = torch.sigmoid(x), int(inside)
        both, sum_p, sum_t = both + p * t, sum_p + p, sum_t + t
    return 1 - (2 * both + 1) / (sum_p + sum_t + 1)


def pairwise(loss: Any, logits: Tensor, masks: Tensor) -> Tensor:
    """Return ``loss`` of every row of logits with every mask: R×N."""
    return torch.tensor([[float(loss(row, mask)) for mask in masks] for row in logits])


def log_softmax(logits: Tensor) -> Tensor:
    """Return ``x_c - log Σ exp x`` for one row of logits."""
    logits = logits.double()
    return logits - torch.log(sum(torch.exp(x - logits.max()) for x in logits)) - logits.max()


# Matching


def cost_terms(
    logits: Tensor, masks: Tensor, target: Any
) -> list[list[tuple[float, float, float]]]:
    """Return the costs Q×N (``-p(class)``, focal, dice), with downsampled target masks."""
    small = pick_nearest(target["masks"], (masks.shape[-2], masks.shape[-1]))
    terms = []
    for query_logits, query_mask in zip(logits, masks, strict=True):
        probability = torch.exp(log_softmax(query_logits))
        terms.append(
            [
                (
                    -float(probability[label]),
                    float(focal(query_mask, mask)),
                    float(dice(query_mask, mask)),
                )
                for label, mask in zip(target["labels"], small, strict=True)
            ]
        )
    return terms


def weighted_cost(
    terms: list[list[tuple[float, float, float]]], weights: tuple[float, float, float]
) -> list[list[float]]:
    """Return the costs Q×N, each the weighted sum of its three terms."""
    return [[sum(w * t for w, t in zip(weights, pair, strict=True)) for pair in q] for q in terms]


def best_assignment(cost: list[list[float]]) -> list[tuple[int, int]]:
    """Return the one-to-one (query, target) pairs of lowest total cost, by trying all of them."""
    queries, targets = range(len(cost)), range(len(cost[0]))
    if len(queries) >= len(targets):
        ways = (
            list(zip(chosen, targets, strict=True))
            for chosen in itertools.permutations(queries, len(targets))
        )
    else:
        ways = (
            list(zip(queries, chosen, strict=True))
            for chosen in itertools.permutations(targets, len(queries))
        )
    return sorted(min(ways, key=lambda pairs: sum(cost[q][t] for q, t in pairs)))


def match(
    layer: Any, targets: Sequence[Any], weights: tuple[float, float, float]
) -> list[list[tuple[int, int]]]:
    """Return the (query, target) pairs of lowest total cost for each image of a batch."""
    return [
        best_assignment(weighted_cost(cost_terms(logits.detach(), masks.detach(), target), weights))
        if len(target["labels"])
        else []
        for logits, masks, target in zip(
            layer["pred_logits"], layer["pred_masks"], targets, strict=True
        )
    ]


# The criterion


def criterion(
    layers: Sequence[Any],
    targets: Sequence[Any],
    matches: Sequence[Sequence[Sequence[tuple[int, int]]]],
    no_object_weight: float,
) -> dict[str, Tensor]:
    """Return the unweighted losses; ``matches[layer][image]`` has (query, target) pairs."""
    num_targets = max(sum(len(target["labels"]) for target in targets), 1)
    losses = {}
    for index, (prediction, of_layer) in enumerate(zip(layers, matches, strict=True)):
        entropy, weights, masks = ZERO, 0.0, {"loss_mask": ZERO, "loss_dice": ZERO}
        for image, (target, pairs) in enumerate(zip(targets, of_layer, strict=True)):
            target_of = dict(pairs)
            for query, logits in enumerate(prediction["pred_logits"][image]):
                no_object = len(logits) - 1
                label = no_object
                if query in target_of:
                    label = int(target["labels"][target_of[query]])
                weight = no_object_weight if label == no_object else 1.0
                entropy = entropy - weight * log_softmax(logits)[label]
                weights += weight
            for query, number in pairs:
                mask = target["masks"][number]
                full = upsample(prediction["pred_masks"][image, query].double(), mask.shape)
                masks["loss_mask"] = masks["loss_mask"] + focal(full, mask)
                masks["loss_dice"] = masks["loss_dice"] + dice(full, mask)
        suffix = "" if index == len(layers) - 1 else f"_{index}"
        losses[f"loss_ce{suffix}"] = entropy / weights
        losses.update({name + suffix: value / num_targets for name, value in masks.items()})
    return losses


# Inference


def class_probabilities(mask_cls: Tensor) -> list[list[float]]:
    """Return the softmax of class logits Q×(K+1), as lists."""
    return [torch.exp(log_softmax(row)).tolist() for row in mask_cls]


def semantic(mask_cls: Tensor, mask_pred: Tensor) -> Tensor:
    """Return the semantic scores ``Σ_q p_q(c)·σ(mask_q)`` of the K real classes: K×H×W."""
    probabilities = class_probabilities(mask_cls)
    masks = mask_pred.double().sigmoid().tolist()
    height, width = mask_pred.shape[-2:]
    result = torch.zeros(mask_cls.shape[1] - 1, height, width, dtype=torch.float64)
    for c in range(len(result)):
        for y in range(height):
            for x in range(width):
                result[c, y, x] = sum(
                    p[c] * mask[y][x] for p, mask in zip(probabilities, masks, strict=True)
                )
    return result


def panoptic(
    mask_cls: Tensor,
    mask_pred: Tensor,
    *,
    thing_ids: Sequence[int],
    object_mask_threshold: float,
    overlap_threshold: float,
    label_ids_to_fuse: Sequence[int] | None = None,
    segment_within_mask: bool = False,
) -> tuple[Tensor, list[dict[str, Any]]]:
    """Return segment ids H×W and the list of segments; see ``panoptic_inference``."""
    height, width = mask_pred.shape[-2:]
    masks = mask_pred.double().sigmoid().tolist()
    kept = []  # (query, class, probability)
    for query, probabilities in enumerate(class_probabilities(mask_cls)):
        score = max(probabilities)
        label = probabilities.index(score)
        if label < len(probabilities) - 1 and score > object_mask_threshold:
            kept.append((query, label, score))

    winner = {}  # pixel: its query
    for y in range(height):
        for x in range(width):
            bids = [(score * masks[query][y][x], query) for query, _, score in kept]
            if bids:  # max returns the first of equal bids
                winner[y, x] = max(bids, key=lambda bid: bid[0])[1]

    ids = torch.zeros(height, width, dtype=torch.int32)
    segments: list[dict[str, Any]] = []
    for query, label, score in kept:
        won = [pixel for pixel, best in winner.items() if best == query]
        own = sum(value >= 0.5 for row in masks[query] for value in row)
        if not won or not own or len(won) / own < overlap_threshold:
            continue
        if segment_within_mask:
            won = [(y, x) for y, x in won if masks[query][y][x] >= 0.5]
        if not won:
            continue
        is_thing = label in thing_ids
        fuse = not is_thing if label_ids_to_fuse is None else label in label_ids_to_fuse
        same = [segment for segment in segments if fuse and segment["category_id"] == label]
        if same:
            segment = same[0]
            segment["score"] = max(segment["score"], score)
        else:
            segment = {"id": len(segments) + 1, "isthing": is_thing, "category_id": label}
            segment["score"] = score
            segments.append(segment)
        for y, x in won:
            ids[y, x] = segment["id"]
    return ids, segments


def instances(
    mask_cls: Tensor, mask_pred: Tensor, *, topk: int, thing_ids: Sequence[int] | None = None
) -> list[dict[str, Any]]:
    """Return the ``topk`` (query, class) pairs by probability: label, score, mask, box (XYXY)."""
    pairs = [
        (probability, query, label)
        for query, row in enumerate(class_probabilities(mask_cls))
        for label, probability in enumerate(row[:-1])
    ]
    found = []
    for probability, query, label in sorted(pairs, reverse=True)[:topk]:
        if thing_ids is not None and label not in thing_ids:
            continue
        values = mask_pred[query].double().sigmoid().tolist()
        inside = [
            (x, y, value)
            for y, row in enumerate(values)
            for x, value in enumerate(row)
            if value > 0.5
        ]
        box, score = [0, 0, 0, 0], 0.0
        if inside:
            xs, ys = [x for x, _, _ in inside], [y for _, y, _ in inside]
            box = [min(xs), min(ys), max(xs) + 1, max(ys) + 1]
            score = probability * sum(value for _, _, value in inside) / len(inside)
        mask = [[value > 0.5 for value in row] for row in values]
        found.append({"label": label, "score": score, "mask": mask, "box": box})
    return found


# Layers


def sine_encoding(height: int, width: int, channels: int, temperature: float = 10000.0) -> Tensor:
    """Return DETR's positional encoding C×h×w: cumulative sums along each axis, scaled to 2π."""
    encoding = torch.zeros(channels, height, width, dtype=torch.float64)
    half = channels // 2
    ones = torch.ones(height, width, dtype=torch.float64)
    for axis in (0, 1):  # rows, then columns
        count = ones.cumsum(axis)
        position = count / (count.max() + 1e-6) * 2 * math.pi
        for channel in range(half):
            angle = position / temperature ** (2 * (channel // 2) / half)
            encoding[axis * half + channel] = angle.cos() if channel % 2 else angle.sin()
    return encoding

"""The mask proposals of method M5.1, one mask and one pair at a time, on segment-anything's own predictor."""

from __future__ import annotations

import numpy as np
import torch
from segment_anything import SamPredictor
from segment_anything.modeling import Sam
from segment_anything.utils.amg import build_point_grid, calculate_stability_score, generate_crop_boxes

from tests.references.masks import box, occupation_filter


def box_iou(a: list[int], b: list[int]) -> float:
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    intersection = max(width, 0) * max(height, 0)
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - intersection
    return intersection / union if union > 0 else 0.0


def greedy_nms(boxes: list[list[int]], scores: list[float], threshold: float) -> list[int]:
    kept: list[int] = []
    for index in sorted(range(len(boxes)), key=lambda i: (-scores[i], i)):
        if all(box_iou(boxes[index], boxes[other]) <= threshold for other in kept):
            kept.append(index)
    return kept


def regions(mask: np.ndarray) -> list[list[tuple[int, int]]]:
    """8-connected regions of a mask by flood fill, in reading order."""
    found, seen = [], np.zeros(mask.shape, dtype=bool)
    for start in np.ndindex(*mask.shape):
        if not mask[start] or seen[start]:
            continue
        seen[start] = True
        region, waiting = [], [start]
        while waiting:
            row, column = waiting.pop()
            region.append((row, column))
            for r in range(max(row - 1, 0), min(row + 2, mask.shape[0])):
                for c in range(max(column - 1, 0), min(column + 2, mask.shape[1])):
                    if mask[r, c] and not seen[r, c]:
                        seen[r, c] = True
                        waiting.append((r, c))
        found.append(region)
    return found


def clean_mask(mask: np.ndarray, min_area_px: int) -> tuple[np.ndarray, bool]:
    """The rule of segment-anything's `remove_small_regions`: holes, then islands."""
    cleaned, changed = mask.copy(), False
    for hole in regions(~mask):
        if len(hole) < min_area_px:
            changed = True
            for position in hole:
                cleaned[position] = True
    islands = regions(cleaned)
    small = [island for island in islands if len(island) < min_area_px]
    if small:
        changed = True
        if len(small) == len(islands):
            small.remove(max(islands, key=len))
        for island in small:
            for position in island:
                cleaned[position] = False
    return cleaned, changed


def propose(sam: Sam, image: np.ndarray, settings) -> list[dict]:
    """Records with mask, level, predicted_iou, stability."""
    height, width = image.shape[:2]
    predictor = SamPredictor(sam)
    found = []
    crops, layers = generate_crop_boxes((height, width), settings.crop_layers, 512 / 1500)
    for (left, top, right, bottom), layer in zip(crops, layers, strict=True):
        crop = image[top:bottom, left:right]
        predictor.set_image(crop)
        in_crop = []
        points = build_point_grid(settings.points_per_side // settings.crop_downscale**layer)
        for start in range(0, len(points), settings.points_per_batch):
            batch = points[start : start + settings.points_per_batch] * np.array([crop.shape[1], crop.shape[0]])
            coordinates = torch.as_tensor(predictor.transform.apply_coords(batch, crop.shape[:2]))
            logits, ious, _ = predictor.predict_torch(
                coordinates[:, None], torch.ones(len(batch), 1, dtype=torch.int), return_logits=True
            )
            for of_point, ious_of_point in zip(logits, ious, strict=True):
                for level in range(3):
                    iou = ious_of_point[level].item()
                    bonus = settings.whole_bonus if level == 2 else 0.0
                    stability = calculate_stability_score(of_point[level][None], 0.0, settings.stability_offset).item()
                    mask = (of_point[level] > 0).numpy()
                    if not (iou + bonus > settings.predicted_iou_threshold and mask.any()):
                        continue
                    if not stability >= settings.stability_threshold:
                        continue
                    edges, crop_edges = box(mask), [left, top, right, bottom]
                    edges = [edges[0] + left, edges[1] + top, edges[2] + left, edges[3] + top]
                    image_edges = [0, 0, width, height]
                    if any(
                        abs(e - c) <= 20 and abs(e - i) > 20
                        for e, c, i in zip(edges, crop_edges, image_edges, strict=True)
                    ):
                        continue
                    full = np.zeros((height, width), dtype=bool)
                    full[top:bottom, left:right] = mask
                    record = {"mask": full, "level": level, "predicted_iou": iou, "stability": stability}
                    in_crop.append(record | {"crop_area": (right - left) * (bottom - top)})
        scores = [r["predicted_iou"] + settings.whole_priority * (r["level"] == 2) for r in in_crop]
        found += [in_crop[i] for i in greedy_nms([box(r["mask"]) for r in in_crop], scores, settings.box_nms_threshold)]
    if len(crops) > 1:
        scores = [1 / r["crop_area"] + settings.whole_priority * (r["level"] == 2) for r in found]
        found = [found[i] for i in greedy_nms([box(r["mask"]) for r in found], scores, settings.box_nms_threshold)]
    if settings.min_region_area_px > 0:
        scores = []
        for record in found:
            record["mask"], changed = clean_mask(record["mask"], settings.min_region_area_px)
            scores.append(0.5 * (not changed) + settings.whole_priority * (record["level"] == 2))
        found = [found[i] for i in greedy_nms([box(r["mask"]) for r in found], scores, settings.box_nms_threshold)]
    if settings.occupation_threshold is not None:
        found.sort(key=lambda r: (-r["level"], -r["predicted_iou"]))
        masks = np.array([r["mask"] for r in found]).reshape(-1, height, width)
        kept = occupation_filter(masks, np.array([r["level"] for r in found]), settings.occupation_threshold)
        found = [found[i] for i in kept]
    return found

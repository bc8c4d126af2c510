"""Every loss once more, straight from its equations: whole matrices, loops over images and classes.

Nothing here is used in training. The tests hold the losses against it, and `cirkd bench losses` measures
their time and memory beside it. Each function takes the built loss (for its layers, settings and queues) and
the inputs, and returns the terms.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import combinations
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from cirkd_ray.losses import LossInputs
from cirkd_ray.losses.hashing import pixel_bits, random_slots
from cirkd_ray.types import SegmentationOutput

Terms = dict[str, Tensor]
Naive = Callable[[Any, LossInputs], Terms]


def labels_of(x: Tensor, inputs: LossInputs) -> Tensor:
    """Labels at the size of a map, by nearest neighbour for a whole factor; -1 where ignored."""
    step = inputs.labels.shape[-1] // x.shape[-1]
    labels = inputs.labels[:, ::step, ::step]
    return labels.masked_fill(labels == inputs.ignore_index, -1)


def pixels(x: Tensor, labels: Tensor) -> list[Tensor]:
    """For each image its valid pixels' vectors, L x C."""
    return [image.flatten(1).T[row.flatten() >= 0] for image, row in zip(x, labels, strict=True)]


def both(inputs: LossInputs, name: str = "feature", adapter: Any = None) -> tuple[list[Tensor], list[Tensor]]:
    """The valid pixels of the student's map (after its adapter) and of the teacher's."""
    student, teacher = inputs.student.tap(name), inputs.teacher.tap(name)
    student = student if adapter is None else adapter(student)
    labels = labels_of(student, inputs)
    return pixels(student, labels), pixels(teacher, labels)


def kl(p: Tensor, q: Tensor, dim: int = -1) -> Tensor:
    """KL(softmax(p) || softmax(q)) of logits."""
    return (p.softmax(dim) * (p.log_softmax(dim) - q.log_softmax(dim))).sum(dim)


def relation(a: Tensor, b: Tensor, temperature: float) -> Tensor:
    """Cosine similarities of a's rows to b's, over the temperature."""
    return F.normalize(a, dim=1) @ F.normalize(b, dim=1).T / temperature


def kd(loss: Any, inputs: LossInputs) -> Terms:
    s, t = (torch.cat(x) for x in both(inputs, "logits"))
    if loss.logit_std:
        s, t = ((x - x.mean(1, keepdim=True)) / x.std(1, keepdim=True, unbiased=False) for x in (s, t))
    return {"kd": kl(t / loss.temperature, s / loss.temperature).mean() * loss.temperature**2}


def at(loss: Any, inputs: LossInputs) -> Terms:
    s, t = (torch.cat([F.normalize(x.square().mean(1), dim=0) for x in side]) for side in both(inputs))
    return {"at": (s - t).square().mean()}


def fitnet(loss: Any, inputs: LossInputs) -> Terms:
    s, t = (torch.cat(x) for x in both(inputs, adapter=loss.adapter))
    return {"fitnet": (s - t).square().mean()}


def skd(loss: Any, inputs: LossInputs) -> Terms:
    mask = (labels_of(inputs.student.feature, inputs) >= 0).unsqueeze(1)
    kept = F.max_pool2d(mask.float(), loss.pool, ceil_mode=True).squeeze(1).long() - 1
    maps = (o.feature.masked_fill(~mask, -torch.inf) for o in (inputs.student, inputs.teacher))
    pooled = [pixels(F.max_pool2d(x, loss.pool, ceil_mode=True), kept) for x in maps]
    pairs = zip(*pooled, strict=True)
    squares = [(relation(s, s, 1.0) - relation(t, t, 1.0)).square().flatten() for s, t in pairs]
    return {"skd": torch.cat(squares).mean()}


def adversarial(loss: Any, inputs: LossInputs) -> Terms:
    mask = (labels_of(inputs.student.logits, inputs) >= 0).unsqueeze(1)
    return {"adversarial": -loss.discriminator(inputs.student.logits * mask).mean()}


def ifvd(loss: Any, inputs: LossInputs) -> Terms:
    labels = labels_of(inputs.student.feature, inputs)
    found = []
    for feature in (inputs.student.feature, inputs.teacher.feature):
        centre = feature.clone()
        for n in range(len(feature)):
            for k in set(labels[n].flatten().tolist()) - {-1}:
                member = labels[n] == k
                centre[n, :, member] = feature[n, :, member].mean(1, keepdim=True)
        found.append(F.cosine_similarity(feature, centre, dim=1))
    return {"ifvd": (found[0] - found[1]).square().mean()}


def cwd(loss: Any, inputs: LossInputs) -> Terms:
    pairs = list(zip(*both(inputs, adapter=loss.adapter), strict=True))
    total = torch.stack([kl(t / loss.temperature, s / loss.temperature, 0).sum() for s, t in pairs]).sum()
    return {"cwd": total * loss.temperature**2 / (len(pairs) * loss.student_width)}


def dsd(loss: Any, inputs: LossInputs) -> Terms:
    mask = (labels_of(inputs.student.feature, inputs) >= 0).unsqueeze(1)
    share = F.avg_pool2d(mask.float(), 2, ceil_mode=True)

    def residuals(o: SegmentationOutput) -> list[Tensor]:
        maps = (o.logits if o.aux is None else o.aux, o.feature, o.logits)
        energies = [F.normalize((x.square().mean(1, keepdim=True) * mask).flatten(1)) for x in maps]
        return [F.normalize(a - b) for a, b in combinations(energies, 2)]

    def gram(o: SegmentationOutput) -> Tensor:
        pooled = F.avg_pool2d(o.logits * mask, 2, ceil_mode=True) / share.clamp(min=0.25)
        p: Tensor = (pooled / loss.temperature).masked_fill(share == 0, -1e30).flatten(2).softmax(2)
        return p @ p.transpose(1, 2)

    pairs = zip(residuals(inputs.student), residuals(inputs.teacher), strict=True)
    psd = torch.stack([(a - b).square()[mask.flatten(1)].mean() for a, b in pairs]).mean()
    return {"psd": psd, "csd": (gram(inputs.student) - gram(inputs.teacher)).square().mean()}


def dist(loss: Any, inputs: LossInputs) -> Terms:
    s, t = ((torch.cat(x) / loss.temperature).softmax(1) for x in both(inputs, "logits"))
    terms = {}
    for name, (a, b) in {"dist_inter": (s, t), "dist_intra": (s.T, t.T)}.items():
        correlation = F.cosine_similarity(a - a.mean(1, keepdim=True), b - b.mean(1, keepdim=True), dim=1)
        terms[name] = (1 - correlation).mean() * loss.temperature**2
    return terms


def dkd(loss: Any, inputs: LossInputs) -> Terms:
    labels = labels_of(inputs.student.logits, inputs)
    target = F.one_hot(labels[labels >= 0], loss.num_classes).bool()
    binary, rest = [], []
    for logits in both(inputs, "logits"):
        p = (torch.cat(logits) / loss.temperature).softmax(1)
        binary.append(torch.stack([p[target], 1 - p[target]], 1).clamp(min=1e-9))
        others = p[~target].view(len(p), -1).clamp(min=1e-12)
        rest.append(others / others.sum(1, keepdim=True))
    return {
        name: (t * (t.log() - s.log())).sum(1).mean() * loss.temperature**2
        for name, (s, t) in {"tckd": binary, "nckd": rest}.items()
    }


def _generated(loss: Any, inputs: LossInputs) -> tuple[Tensor, Tensor]:
    """The map generated from the adapted feature with holes, and its squared error."""
    x = loss.adapter(inputs.student.feature)
    n, _, h, w = x.shape
    bits = pixel_bits(n, h * w, 0, x.device, *inputs.key("mask"))
    kept = bits.view(n, 1, h, w) >= int(loss.generator.mask_ratio * 2**32)
    first, _, second = loss.generator.layers
    generated = second(first(x * kept).relu())
    valid = (labels_of(x, inputs) >= 0).unsqueeze(1)
    return generated, ((generated - inputs.teacher.feature).square() * valid).sum() / n


def mgd(loss: Any, inputs: LossInputs) -> Terms:
    return {"mgd": _generated(loss, inputs)[1]}


def af_dcd(loss: Any, inputs: LossInputs) -> Terms:
    generated, error = _generated(loss, inputs)
    mask = (labels_of(generated, inputs) >= 0).float().unsqueeze(1)
    valid = F.max_pool2d(mask, loss.pool)[:, 0] > 0
    maps = [F.max_pool2d(x, loss.pool) for x in (generated, inputs.teacher.feature)]
    size, groups, values = loss.patch, loss.groups, []
    corners = [range(0, length - size + 1, size) for length in maps[0].shape[2:]]
    for n, y, x in torch.cartesian_prod(
        torch.arange(len(valid)), *(torch.tensor(c) for c in corners)
    ).tolist():
        spot = (n, ..., slice(y, y + size), slice(x, x + size))
        # Vectors of the patch, p*p x M of C/M channels, the group fastest.
        a, b = (m[spot].reshape(groups, -1, size**2).permute(2, 0, 1).flatten(0, 1) for m in maps)
        similarity = -(a.unsqueeze(1) - b.unsqueeze(0)).abs().sum(2) / loss.temperature
        group = torch.arange(len(a), device=a.device) % groups
        same = (group.unsqueeze(0) == group.unsqueeze(1)).fill_diagonal_(False)
        entropy = similarity.masked_fill(same, -torch.inf).logsumexp(1) - similarity.diagonal()
        values.append(entropy.view(-1, groups).sum(1)[valid[spot].flatten()])
    return {"af_dcd_feature": error, "af_dcd_contrast": torch.cat(values).mean()}


def cirkd_minibatch(loss: Any, inputs: LossInputs) -> Terms:
    s, t = both(inputs)
    return {"minibatch_pixel": pairs_of_images(s, t, loss.temperature)}


def pairs_of_images(s: list[Tensor], t: list[Tensor], temperature: float) -> Tensor:
    """Mean over rows and ordered pairs of images of the relational KL."""
    images = range(len(s))
    rows = [
        kl(relation(t[i], t[j], temperature), relation(s[i], s[j], temperature))
        for i in images
        for j in images
    ]
    return torch.cat(rows).mean()


def push(queue: Any, k: int, vectors: Tensor) -> None:
    """Write the vectors over the oldest of class k."""
    start, slots = int(queue.ptr[k]), queue.queue.shape[1]
    queue.queue[k, torch.arange(start, start + len(vectors)) % slots] = vectors
    queue.ptr[k] = (start + len(vectors)) % slots


def enqueue(loss: Any, inputs: LossInputs) -> None:
    """Both queues of `cirkd_memory`, an image and a class at a time."""
    labels = labels_of(inputs.teacher.feature, inputs).flatten(1)
    teacher = F.normalize(inputs.teacher.feature, dim=1).flatten(2).transpose(1, 2)
    bits = pixel_bits(
        len(labels), labels.shape[1], 0, labels.device, "candidates", inputs.seed, inputs.step, inputs.micro
    )
    for n in range(len(labels)):
        for k in range(loss.num_classes):
            member = (labels[n] == k).nonzero()[:, 0]
            if len(member):
                push(loss.region, k, F.normalize(teacher[n, member].mean(0, keepdim=True)))
                chosen = member[bits[n, member].argsort(stable=True)[: loss.pixel_candidates]]
                push(loss.pixel, k, teacher[n, chosen])


def to_keys(loss: Any, s: Tensor, t: Tensor, keys: Tensor) -> Tensor:
    """Relational KL of rows to the unit vectors of a queue."""
    softness: float = loss.kd_temperature
    s, t = (F.normalize(x, dim=1) @ keys.T / (loss.temperature * softness) for x in (s, t))
    return kl(t, s).mean() * softness**2


def cirkd_memory(loss: Any, inputs: LossInputs) -> Terms:
    enqueue(loss, inputs)
    s, t = (torch.cat(x) for x in both(inputs, adapter=loss.projector))
    terms = {}
    for term, queue in (("memory_pixel", loss.pixel), ("memory_region", loss.region)):
        slots = random_slots(queue.queue.shape[1], loss.draws[term], t.device, *inputs.key(term))
        terms[term] = to_keys(loss, s, t, torch.cat([vectors[slots] for vectors in queue.queue]))
    return terms


def cirkd_channel(loss: Any, inputs: LossInputs) -> Terms:
    mask = (labels_of(inputs.student.feature, inputs) >= 0).float().unsqueeze(1)
    valid = F.max_pool2d(mask, loss.pool, ceil_mode=True)
    pooled = [F.avg_pool2d(o.feature, loss.pool, ceil_mode=True) for o in (inputs.student, inputs.teacher)]
    s, t = ([*(x * valid).flatten(2)] for x in (loss.projector(pooled[0]), pooled[1]))
    share = min(len(t[0]), -(-loss.candidates // len(t)))
    bits = pixel_bits(len(t), len(t[0]), 0, t[0].device, *inputs.key("channels"))
    chosen = [F.normalize(x, dim=1)[b.argsort(stable=True)[:share]] for x, b in zip(t, bits, strict=True)]
    push(loss.channel, 0, torch.cat(chosen)[: loss.candidates])
    queue = loss.channel.queue[0]
    keys = queue[random_slots(len(queue), loss.channel_keys, queue.device, *inputs.key("memory_channel"))]
    student, teacher = (F.normalize(torch.cat(x), dim=1) for x in (s, t))
    return {
        "minibatch_channel": pairs_of_images(s, t, loss.temperature),
        "memory_channel": to_keys(loss, student, teacher, keys),
        "channel_mse": (student - teacher).square().mean(),
    }


def cirkd_v2(loss: Any, inputs: LossInputs) -> Terms:
    inputs = replace(inputs, student=inputs.student._replace(feature=loss.context(inputs.student.feature)))
    return {
        **fitnet(loss.fitnet, inputs),
        **cirkd_minibatch(loss.minibatch, inputs),
        **cirkd_memory(loss.memory, inputs),
        **cirkd_channel(loss.channel, inputs),
    }


_ALL: tuple[Naive, ...] = (
    adversarial, af_dcd, at, cirkd_channel, cirkd_memory, cirkd_minibatch, cirkd_v2, cwd, dist, dkd, dsd,
    fitnet, ifvd, kd, mgd, skd,
)  # fmt: skip
NAIVE = {function.__name__: function for function in _ALL}
"""By the name of the loss; one without an entry is measured alone."""

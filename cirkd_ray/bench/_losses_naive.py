"""Every loss once more, straight from its equations: whole matrices, loops over images and classes.

Nothing here is used in training. `cirkd bench losses` holds the package's losses against it, in time,
memory and value. Each function takes the built loss (for its layers, settings and queues) and the inputs,
and returns the terms.
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
from cirkd_ray.losses.maps import resize_labels

Terms = dict[str, Tensor]
Naive = Callable[[Any, LossInputs], Terms]


def labels_of(x: Tensor, inputs: LossInputs) -> Tensor:
    return resize_labels(inputs.labels, (x.shape[-2], x.shape[-1]))


def pixels(x: Tensor, labels: Tensor) -> list[Tensor]:
    """For each image its valid pixels' vectors, L x C."""
    return [image.flatten(1).T[row.flatten() >= 0] for image, row in zip(x, labels, strict=True)]


def kl(p: Tensor, q: Tensor, dim: int = -1) -> Tensor:
    """KL(softmax(p) || softmax(q)) of logits."""
    return (p.softmax(dim) * (p.log_softmax(dim) - q.log_softmax(dim))).sum(dim)


def relation(a: Tensor, b: Tensor, temperature: float) -> Tensor:
    return F.normalize(a, dim=1) @ F.normalize(b, dim=1).T / temperature


def kd(loss: Any, inputs: LossInputs) -> Terms:
    labels = labels_of(inputs.student.logits, inputs)
    s, t = (torch.cat(pixels(o.logits, labels)) / loss.temperature for o in (inputs.student, inputs.teacher))
    return {"kd": kl(t, s).mean() * loss.temperature**2}


def at(loss: Any, inputs: LossInputs) -> Terms:
    labels = labels_of(inputs.student.feature, inputs)
    s, t = (
        torch.cat([F.normalize(x.square().mean(1), dim=0) for x in pixels(o.feature, labels)])
        for o in (inputs.student, inputs.teacher)
    )
    return {"at": (s - t).square().mean()}


def fitnet(loss: Any, inputs: LossInputs) -> Terms:
    student = loss.adapter(inputs.student.feature)
    labels = labels_of(student, inputs)
    s, t = (torch.cat(pixels(x, labels)) for x in (student, inputs.teacher.feature))
    return {"fitnet": (s - t).square().mean()}


def skd(loss: Any, inputs: LossInputs) -> Terms:
    squares = []
    mask = (labels_of(inputs.student.feature, inputs) >= 0).unsqueeze(1)
    kept = F.max_pool2d(mask.float(), loss.pool, ceil_mode=True).squeeze(1).long() - 1
    maps = [
        pixels(F.max_pool2d(o.feature.masked_fill(~mask, -torch.inf), loss.pool, ceil_mode=True), kept)
        for o in (inputs.student, inputs.teacher)
    ]
    for s, t in zip(*maps, strict=True):
        squares.append((relation(s, s, 1.0) - relation(t, t, 1.0)).square().flatten())
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
            for k in range(loss.num_classes):
                member = labels[n] == k
                if member.any():
                    centre[n, :, member] = feature[n, :, member].mean(1, keepdim=True)
        found.append(F.cosine_similarity(feature, centre, dim=1))
    return {"ifvd": (found[0] - found[1]).square().mean()}


def cwd(loss: Any, inputs: LossInputs) -> Terms:
    student = loss.adapter(inputs.student.feature)
    labels = labels_of(student, inputs)
    pairs = zip(pixels(student, labels), pixels(inputs.teacher.feature, labels), strict=True)
    total = torch.stack([kl(t / loss.temperature, s / loss.temperature, 0).sum() for s, t in pairs]).sum()
    return {"cwd": total * loss.temperature**2 / (len(student) * loss.student_width)}


def dsd(loss: Any, inputs: LossInputs) -> Terms:
    labels = labels_of(inputs.student.feature, inputs)
    mask = (labels >= 0).unsqueeze(1)
    residuals, grams = [], []
    for o in (inputs.student, inputs.teacher):
        outer = o.logits if o.aux is None else o.aux
        energies = [
            (x.square().mean(1, keepdim=True) * mask).flatten(1) for x in (outer, o.feature, o.logits)
        ]
        maps = [F.normalize(e) for e in energies]
        residuals.append([F.normalize(a - b) for a, b in combinations(maps, 2)])
        share = F.avg_pool2d(mask.float(), 2, ceil_mode=True)
        pooled = F.avg_pool2d(o.logits * mask, 2, ceil_mode=True) / share.clamp(min=0.25)
        probability = (pooled / loss.temperature).masked_fill(share == 0, -1e30).flatten(2).softmax(2)
        grams.append(probability @ probability.transpose(1, 2))
    valid = mask.flatten(1)
    psd = torch.stack([(a - b).square()[valid].mean() for a, b in zip(*residuals, strict=True)]).mean()
    return {"psd": psd, "csd": (grams[0] - grams[1]).square().mean()}


def dist(loss: Any, inputs: LossInputs) -> Terms:
    labels = labels_of(inputs.student.logits, inputs)
    s, t = (
        (torch.cat(pixels(o.logits, labels)) / loss.temperature).softmax(1)
        for o in (inputs.student, inputs.teacher)
    )
    terms = {}
    for name, (a, b) in {"dist_inter": (s, t), "dist_intra": (s.T, t.T)}.items():
        correlation = F.cosine_similarity(a - a.mean(1, keepdim=True), b - b.mean(1, keepdim=True), dim=1)
        terms[name] = (1 - correlation).mean() * loss.temperature**2
    return terms


def dkd(loss: Any, inputs: LossInputs) -> Terms:
    labels = labels_of(inputs.student.logits, inputs)
    target = labels[labels >= 0]
    kept = torch.ones(len(target), loss.num_classes, dtype=torch.bool, device=target.device)
    kept[torch.arange(len(target)), target] = False
    both, rest = [], []
    for o in (inputs.student, inputs.teacher):
        p = (torch.cat(pixels(o.logits, labels)) / loss.temperature).softmax(1)
        chosen = p[~kept]
        both.append(torch.stack([chosen, 1 - chosen], 1).clamp(min=1e-9))
        others = p[kept].view(len(target), -1).clamp(min=1e-12)
        rest.append(others / others.sum(1, keepdim=True))
    terms = {}
    for name, (s, t) in {"tckd": both, "nckd": rest}.items():
        terms[name] = (t * (t.log() - s.log())).sum(1).mean() * loss.temperature**2
    return terms


def _generated(loss: Any, inputs: LossInputs) -> tuple[Tensor, Tensor]:
    x = loss.adapter(inputs.student.feature)
    n, _, h, w = x.shape
    bits = pixel_bits(n, h * w, 0, x.device, "mask", inputs.seed, inputs.step, inputs.micro)
    kept = bits.view(n, 1, h, w) >= int(loss.generator.mask_ratio * 2**32)
    generated = loss.generator.layers(x * kept)
    labels = labels_of(x, inputs)
    pairs = zip(pixels(generated, labels), pixels(inputs.teacher.feature, labels), strict=True)
    return generated, torch.stack([(s - t).square().sum() for s, t in pairs]).mean()


def mgd(loss: Any, inputs: LossInputs) -> Terms:
    return {"mgd": _generated(loss, inputs)[1]}


def af_dcd(loss: Any, inputs: LossInputs) -> Terms:
    generated, error = _generated(loss, inputs)
    mask = (labels_of(generated, inputs) >= 0).float().unsqueeze(1)
    valid = F.max_pool2d(mask, loss.pool)[:, 0] > 0
    s, t = (F.max_pool2d(x, loss.pool) for x in (generated, inputs.teacher.feature))
    size, groups, values = loss.patch, loss.groups, []
    for n in range(len(s)):
        for y in range(0, s.shape[2] - size + 1, size):
            for x in range(0, s.shape[3] - size + 1, size):
                here = (slice(y, y + size), slice(x, x + size))
                a, b = (
                    m[n][:, here[0], here[1]].reshape(groups, -1, size * size).permute(2, 0, 1).flatten(0, 1)
                    for m in (s, t)
                )
                similarity = -(a.unsqueeze(1) - b.unsqueeze(0)).abs().sum(2) / loss.temperature
                group = torch.arange(len(a), device=a.device) % groups
                other = (group.unsqueeze(0) != group.unsqueeze(1)) | torch.eye(
                    len(a), dtype=torch.bool, device=a.device
                )
                entropy = similarity.masked_fill(~other, -torch.inf).logsumexp(1) - similarity.diagonal()
                values.append(entropy.view(-1, groups).sum(1)[valid[n][here].flatten()])
    return {"af_dcd_feature": error, "af_dcd_contrast": torch.cat(values).mean()}


def cirkd_minibatch(loss: Any, inputs: LossInputs) -> Terms:
    labels = labels_of(inputs.student.feature, inputs)
    s, t = (pixels(o.feature, labels) for o in (inputs.student, inputs.teacher))
    return {"minibatch_pixel": _pairs(s, t, loss.temperature)}


def _pairs(s: list[Tensor], t: list[Tensor], temperature: float) -> Tensor:
    """Mean over rows and ordered pairs of images of the relational KL."""
    rows = []
    for i in range(len(s)):
        for j in range(len(s)):
            rows.append(kl(relation(t[i], t[j], temperature), relation(s[i], s[j], temperature)))
    return torch.cat(rows).mean()


def enqueue(loss: Any, teacher: Tensor, labels: Tensor, inputs: LossInputs) -> None:
    """Both queues, an image and a class at a time; teacher: N x C x L, normalised, labels: N x L."""
    key = ("candidates", inputs.seed, inputs.step, inputs.micro)
    bits = pixel_bits(labels.shape[0], labels.shape[1], 0, labels.device, *key)
    for n in range(len(labels)):
        for k in range(loss.num_classes):
            member = (labels[n] == k).nonzero()[:, 0]
            if len(member) == 0:
                continue
            region = F.normalize(teacher[n][:, member].mean(1), dim=0).unsqueeze(0)
            chosen = member[bits[n, member].argsort(stable=True)[: loss.pixel_candidates]]
            for queue, new in ((loss.region, region), (loss.pixel, teacher[n][:, chosen].T)):
                start, slots = int(queue.ptr[k]), queue.queue.shape[1]
                queue.queue[k, torch.arange(start, start + len(new)) % slots] = new
                queue.ptr[k] = (start + len(new)) % slots


def cirkd_memory(loss: Any, inputs: LossInputs) -> Terms:
    labels = labels_of(inputs.student.feature, inputs)
    teacher = F.normalize(inputs.teacher.feature, dim=1).flatten(2)
    enqueue(loss, teacher, labels.flatten(1), inputs)
    s = torch.cat(pixels(loss.projector(inputs.student.feature), labels))
    t = torch.cat(pixels(inputs.teacher.feature, labels))
    terms = {}
    for term, queue in (("memory_pixel", loss.pixel), ("memory_region", loss.region)):
        key = (term, inputs.seed, inputs.step, inputs.micro)
        slots = random_slots(queue.queue.shape[1], loss.draws[term], t.device, *key)
        keys = torch.cat([classes[slots] for classes in queue.queue])
        tau = loss.temperature * loss.kd_temperature
        terms[term] = kl(relation(t, keys, tau), relation(s, keys, tau)).mean() * loss.kd_temperature**2
    return terms


def cirkd_channel(loss: Any, inputs: LossInputs) -> Terms:
    mask = (labels_of(inputs.student.feature, inputs) >= 0).float().unsqueeze(1)
    valid = F.max_pool2d(mask, loss.pool, ceil_mode=True)
    pooled = [F.avg_pool2d(o.feature, loss.pool, ceil_mode=True) for o in (inputs.student, inputs.teacher)]
    s, t = ([*(x * valid).flatten(2)] for x in (loss.projector(pooled[0]), pooled[1]))
    vectors = [F.normalize(torch.cat(x), dim=1) for x in (s, t)]
    key = (inputs.seed, inputs.step, inputs.micro)
    share = min(len(t[0]), -(-loss.candidates // len(t)))
    bits = pixel_bits(len(t), len(t[0]), 0, t[0].device, "channels", *key)
    chosen = [F.normalize(x, dim=1)[b.argsort(stable=True)[:share]] for x, b in zip(t, bits, strict=True)]
    queue, ptr = loss.channel.queue[0], loss.channel.ptr
    for vector in torch.cat(chosen)[: loss.candidates]:
        queue[int(ptr)] = vector
        ptr.add_(1).remainder_(len(queue))
    keys = queue[random_slots(len(queue), loss.channel_keys, queue.device, "memory_channel", *key)]
    tau = loss.temperature * loss.kd_temperature
    memory = kl(vectors[1] @ keys.T / tau, vectors[0] @ keys.T / tau).mean() * loss.kd_temperature**2
    mse = (vectors[0] - vectors[1]).square().mean()
    return {
        "minibatch_channel": _pairs(s, t, loss.temperature),
        "memory_channel": memory,
        "channel_mse": mse,
    }


def cirkd_v2(loss: Any, inputs: LossInputs) -> Terms:
    inputs = replace(inputs, student=inputs.student._replace(feature=loss.context(inputs.student.feature)))
    return {
        **fitnet(loss.fitnet, inputs),
        **cirkd_minibatch(loss.minibatch, inputs),
        **cirkd_memory(loss.memory, inputs),
        **cirkd_channel(loss.channel, inputs),
    }


NAIVE: dict[str, Naive] = {
    "adversarial": adversarial,
    "af_dcd": af_dcd,
    "at": at,
    "cirkd_channel": cirkd_channel,
    "cirkd_memory": cirkd_memory,
    "cirkd_minibatch": cirkd_minibatch,
    "cirkd_v2": cirkd_v2,
    "cwd": cwd,
    "dist": dist,
    "dkd": dkd,
    "dsd": dsd,
    "fitnet": fitnet,
    "ifvd": ifvd,
    "kd": kd,
    "mgd": mgd,
    "skd": skd,
}
"""A loss without an entry is measured alone."""

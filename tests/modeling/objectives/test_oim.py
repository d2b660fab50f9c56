"""Online instance matching against its definition, feature by feature."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from person_search.modeling import OIMObjective, TrainingEmbeddings
from person_search.modeling.objectives.oim import online_matching_loss, push_queue, update_table
from torch import Tensor

DIM = 6


def unit(*shape: int, seed: int = 0) -> Tensor:
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


def textbook_loss(f: Tensor, targets: Tensor, table: Tensor, queue: Tensor, temperature: float) -> float:
    terms = []
    for feature, target in zip(f.double(), targets.tolist(), strict=True):
        if target >= 0:
            scores = [float(feature @ row.double()) / temperature for row in (*table, *queue)]
            terms.append(math.log(sum(math.exp(s) for s in scores)) - scores[target])
    return sum(terms) / len(terms) if terms else 0.0


def textbook_memory(table: Tensor, queue: Tensor, slot: int, batches: list[tuple[Tensor, Tensor]], momentum: float):
    """One RoI after another, as OIM's definition has it."""
    table, queue = table.clone(), queue.clone()
    for targets, features in batches:
        for target, feature in zip(targets.tolist(), features, strict=True):
            if target >= 0:
                moved = momentum * table[target] + (1 - momentum) * feature
                table[target] = moved / moved.norm()
            elif len(queue):
                queue[slot] = feature
                slot = (slot + 1) % len(queue)
    return table, queue, slot


def objective(queue_size: int = 4, momentum: float = 0.5) -> OIMObjective:
    return OIMObjective(dim=DIM, queue_size=queue_size, momentum=momentum, temperature=1 / 30, weight=1.0)


def batch(rows: Tensor, seed: int = 0) -> TrainingEmbeddings:
    rois, none = unit(len(rows), DIM, seed=seed), torch.zeros(0, DIM)
    return TrainingEmbeddings(rois.requires_grad_(), rows, none, none, rows[:0], rows[:0], None)


@settings(deadline=None, max_examples=30)
@given(
    q=st.integers(0, 6), persons=st.integers(1, 5), slots=st.integers(0, 4), seed=st.integers(0, 1000),
    temperature=st.sampled_from([1 / 30, 0.1, 1.0]),
)  # fmt: skip
def test_loss_equals_the_definition(q, persons, slots, seed, temperature):
    f, table, queue = unit(q, DIM, seed=seed), unit(persons, DIM, seed=seed + 1), unit(slots, DIM, seed=seed + 2)
    table[0] = 0  # an identity that nobody has seen yet counts with the similarity 0
    targets = torch.randint(-1, persons, (q,), generator=torch.Generator().manual_seed(seed))
    loss = online_matching_loss(f, targets, table, queue, temperature)
    assert float(loss) == pytest.approx(textbook_loss(f, targets, table, queue, temperature), rel=1e-4, abs=1e-4)


def test_gradient_reaches_the_features_with_an_identity_alone():
    f, table, queue = unit(4, DIM).requires_grad_(), unit(3, DIM, seed=1).requires_grad_(), unit(2, DIM, seed=2)
    online_matching_loss(f, torch.tensor([0, -1, 2, -1]), table, queue, 0.1).backward()
    assert (f.grad.abs().sum(dim=1) > 0).tolist() == [True, False, True, False]
    assert table.grad is None
    f.grad = None
    loss = online_matching_loss(f, torch.full((4,), -1), table, queue, 0.1)
    loss.backward()
    assert float(loss.detach()) == 0.0 and f.grad is not None


@settings(deadline=None, max_examples=30)
@given(
    sizes=st.lists(st.integers(0, 9), min_size=1, max_size=4), slots=st.integers(0, 5), seed=st.integers(0, 1000),
    momentum=st.sampled_from([0.5, 0.0, 0.9]),
)  # fmt: skip
def test_table_and_queue_equal_one_roi_after_another(sizes, slots, seed, momentum):
    generator = torch.Generator().manual_seed(seed)
    batches = [
        (torch.randint(-1, 3, (n,), generator=generator), F.normalize(torch.randn(n, DIM, generator=generator), dim=1))
        for n in sizes
    ]
    table, queue, position = torch.zeros(3, DIM), torch.zeros(slots, DIM), torch.tensor(0)
    for targets, features in batches:
        update_table(table, targets[targets >= 0], features[targets >= 0], momentum)
        push_queue(queue, position, features[targets < 0])
    expected = textbook_memory(torch.zeros(3, DIM), torch.zeros(slots, DIM), 0, batches, momentum)
    torch.testing.assert_close(table, expected[0])
    assert torch.equal(queue, expected[1]) and int(position) == expected[2]


def test_objective_learns_from_its_batches_and_a_state_dict_holds_all_it_knows():
    identities = torch.tensor([0, -1, 1, 0, -1, 2])
    ours, other = objective(), objective()
    for o in (ours, other):
        o.allocate(torch.arange(6), identities)
    assert ours.lookup_table.shape == (3, DIM)
    batches = []
    for i, rows in enumerate(([0, 1, 1, 3, 5], [4, 2, 1, 4])):
        current = batch(torch.tensor(rows), seed=i)
        loss = ours(current)["loss_oim"]
        targets = identities[torch.tensor(rows)]
        expected = textbook_loss(current.rois.detach(), targets, ours.lookup_table, ours.queue, 1 / 30)
        assert float(loss.detach()) == pytest.approx(expected, rel=1e-4)
        batches.append((targets, current.rois.detach()))
        ours.apply_pending()
    table, queue, slot = textbook_memory(torch.zeros(3, DIM), torch.zeros(4, DIM), 0, batches, 0.5)
    torch.testing.assert_close(ours.lookup_table, table)
    assert torch.equal(ours.queue, queue) and int(ours.queue_position) == slot == 1
    assert set(ours.state_dict()) == {"lookup_table", "queue", "queue_position"}
    other.load_state_dict(ours.state_dict())
    last = batch(torch.tensor([1, 2, 0]), seed=9)
    for o in (ours, other):
        o(last)
        o.apply_pending()
    assert all(torch.equal(v, other.state_dict()[k]) for k, v in ours.state_dict().items())


def test_processes_gather_before_they_remember(monkeypatch):
    identities = torch.tensor([0, -1, 1, 0])
    parts = [batch(torch.tensor([0, 1, 3]), seed=1), batch(torch.tensor([1, 2, 0]), seed=2)]
    processes = [objective(), objective()]
    for o, part in zip(processes, parts, strict=True):
        o.allocate(torch.arange(4), identities)
        o(part)
    sent = [o.pending for o in processes]
    monkeypatch.setattr("person_search.modeling.objectives.base.comm.get_world_size", lambda: 2)
    monkeypatch.setattr("person_search.modeling.objectives.base.comm.all_gather", lambda data: sent)
    for o in processes:
        o.apply_pending()
    whole = [(identities[p.roi_instance_index], p.rois.detach()) for p in parts]
    table, queue, slot = textbook_memory(torch.zeros(2, DIM), torch.zeros(4, DIM), 0, whole, 0.5)
    for o in processes:
        torch.testing.assert_close(o.lookup_table, table)
        assert torch.equal(o.queue, queue) and int(o.queue_position) == slot


def test_without_persons_there_is_no_loss_and_without_identities_no_memory():
    assert objective()(batch(torch.tensor([0, 1]))) == {}
    with pytest.raises(ValueError, match="supervised"):
        objective().allocate(torch.arange(4))

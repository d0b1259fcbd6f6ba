"""On a CUDA device too, the greedy tokens do not depend on where the blocks are."""

from __future__ import annotations

import gc
from typing import Any

import pytest
import torch

from engine.int8.linear import ComputeMode
from engine.model.loaded import Int8Model
from engine.plan.demands import Workload
from engine.plan.from_layout import demands_of_layout
from engine.plan.plan import Budgets, CannotRunError, Plan, Tier
from engine.plan.rates import T4
from engine.plan.search import make_plan
from engine.store.prepare import Int8Store
from engine.weights import buffers as host_buffer
from tests.placements import PLACEMENTS, bytes_by_tier
from tests.streamed_models import (
    PROMPTS,
    PlainTokens,
    StreamedModels,
    at_tiers,
    placement_of,
    tokens_of,
)
from tests.tiny_checkpoints import ALIASES

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device"),
]

ON_CUDA = StreamedModels(torch.device("cuda", 0), torch.float16)
MODES: tuple[ComputeMode, ...] = ("llm_int8", "w8a16")
BATCHES = {"one prompt": PROMPTS[:1], "five of other lengths": PROMPTS}
SHORT_ROWS = Workload(prompt_tokens=24, new_tokens=8, shard_rows=6)


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Int8Store]:
    return ON_CUDA.stores(tmp_path_factory.mktemp("stores"))


@pytest.fixture(scope="module")
def plain(stores: dict[str, Int8Store]) -> PlainTokens:
    return ON_CUDA.plain(stores)


def tokens_at(
    store: Int8Store, placement: str, prompts: tuple[str, ...], **options: Any
) -> list[Any]:
    with ON_CUDA.placed(store, placement, **options) as model:
        return tokens_of(model, store, prompts)


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("placement", PLACEMENTS)
@pytest.mark.parametrize("alias", ALIASES)
def test_the_tokens_are_those_of_plain_transformers(
    alias: str,
    placement: str,
    mode: ComputeMode,
    batch: str,
    stores: dict[str, Int8Store],
    plain: PlainTokens,
) -> None:
    tokens = tokens_at(stores[alias], placement, BATCHES[batch], mode=mode)
    assert tokens == plain(alias, mode, BATCHES[batch])


@pytest.mark.parametrize("slot_count", [1, 2, 3, 99])
@pytest.mark.parametrize("placement", ["all-in-ram", "all-on-disk", "mixed"])
@pytest.mark.parametrize("alias", ALIASES)
def test_the_tokens_are_those_of_everything_resident_with_any_number_of_slots(
    alias: str, placement: str, slot_count: int, stores: dict[str, Int8Store]
) -> None:
    expected = tokens_at(stores[alias], "all-resident", PROMPTS)
    assert tokens_at(stores[alias], placement, PROMPTS, slot_count=slot_count) == expected


@pytest.mark.parametrize("placement", PLACEMENTS)
@pytest.mark.parametrize("alias", ALIASES)
def test_each_tier_holds_the_bytes_of_its_blocks(
    alias: str, placement: str, stores: dict[str, Int8Store]
) -> None:
    store = stores[alias]
    tiers = placement_of(store, placement)
    with at_tiers(store, tiers, device=ON_CUDA.device) as model:
        for tier, expected in bytes_by_tier(store.layout, tiers).items():
            assert bytes_at(model, tier) == pytest.approx(expected, rel=0.02)


@pytest.mark.parametrize("has_ram", [True, False])
@pytest.mark.parametrize("alias", ALIASES)
def test_memory_is_what_the_plan_says(
    alias: str, has_ram: bool, stores: dict[str, Int8Store], pinned: dict[int, int]
) -> None:
    plan = tightest_plan(stores[alias], has_ram=has_ram)
    assert len(plan.blocks_at("resident")) < len(plan.blocks)
    with at_tiers(stores[alias], plan.placement, device=ON_CUDA.device) as model:
        slot_bytes = sum(slot.flat.numel() for slot in model.slots)
        staging_bytes = sum(pinned.values()) - bytes_at(model, "ram")
        planned = plan.memory
        assert bytes_at(model, "resident") == pytest.approx(planned.resident_bytes, rel=0.02)
        assert bytes_at(model, "ram") == pytest.approx(planned.ram_bytes, rel=0.02)
        assert slot_bytes <= 1.02 * planned.slot_bytes
        assert staging_bytes <= 1.02 * planned.staging_bytes


def bytes_at(model: Int8Model, tier: Tier) -> int:
    return sum(block.bytes for block in model.blocks.values() if block.tier == tier)


def tightest_plan(store: Int8Store, *, has_ram: bool) -> Plan:
    """For the least GPU memory that does, and RAM for all weights or the least that does."""
    layout = store.layout
    model = demands_of_layout(store.config, "tiny", layout, on_gpu=True)
    disk_bytes = 10**12
    nothing = Budgets(gpu_bytes=0, cpu_bytes=0, disk_bytes=disk_bytes)
    with pytest.raises(CannotRunError) as refused:
        make_plan(model, SHORT_ROWS, nothing, T4)
    least = refused.value.short
    ram_bytes = layout.int8_bytes if has_ram else least["CPU memory"]
    budgets = Budgets(gpu_bytes=least["GPU memory"], cpu_bytes=ram_bytes, disk_bytes=disk_bytes)
    return make_plan(model, SHORT_ROWS, budgets, T4)


@pytest.fixture
def pinned(monkeypatch: pytest.MonkeyPatch) -> dict[int, int]:
    """The bytes of each buffer that is pinned at the moment, by its address."""
    pinned: dict[int, int] = {}
    register, unregister = host_buffer._register, host_buffer._unregister

    def count(buffer: torch.Tensor) -> None:
        register(buffer)
        pinned[buffer.data_ptr()] = buffer.numel()

    def uncount(buffer: torch.Tensor) -> None:
        unregister(buffer)
        del pinned[buffer.data_ptr()]

    monkeypatch.setattr(host_buffer, "_register", count)
    monkeypatch.setattr(host_buffer, "_unregister", uncount)
    return pinned


def test_one_model_after_another_leaves_no_memory_taken(
    stores: dict[str, Int8Store], pinned: dict[int, int]
) -> None:
    # given what libraries keep from their first use
    use(stores["tiny-bloom"], pinned)
    use(stores["tiny-cerebras"], pinned)
    baseline_bytes = settled_bytes()
    # when A, B and A are loaded and used
    for alias in ("tiny-bloom", "tiny-cerebras", "tiny-bloom"):
        use(stores[alias], pinned)
        # then nothing of the last one is left
        assert settled_bytes() == baseline_bytes
        assert pinned == {}


def use(store: Int8Store, pinned: dict[int, int]) -> None:
    with ON_CUDA.placed(store, "mixed") as model:
        tokens_of(model, store)
        assert sum(pinned.values()) >= bytes_at(model, "ram") > 0


def settled_bytes() -> int:
    gc.collect()
    torch.cuda.synchronize()
    return torch.cuda.memory_allocated()

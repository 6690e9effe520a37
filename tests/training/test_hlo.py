# ruff: noqa: E501 (lines of HLO are long)
"""What a compiled program moves, read from small ones."""

import pytest

from training import collectives, hlo

# As the TPU compiler writes them: layouts with tiles, S(1) for what is on the
# chip, asynchronous copies and collectives.
TEXT = """\
HloModule jit_step, is_scheduled=true, num_partitions=8

%sum (a: f32[], b: f32[]) -> f32[] {
  %a = f32[]{:T(128)} parameter(0)
  %b = f32[]{:T(128)} parameter(1)
  ROOT %add = f32[]{:T(128)} add(%a, %b)
}

%fused (p: f32[16,24]) -> f32[16,24] {
  %p = f32[16,24]{1,0:T(8,128)} parameter(0)
  ROOT %double = f32[16,24]{1,0:T(8,128)} add(%p, %p)
}

%body (carry: (s32[], f32[16,128])) -> (s32[], f32[16,128]) {
  %carry = (s32[]{:T(128)}, f32[16,128]{1,0:T(8,128)}) parameter(0)
  %round = s32[]{:T(128)} get-tuple-element(%carry), index=0
  %x = f32[16,128]{1,0:T(8,128)} get-tuple-element(%carry), index=1
  %loop_reduce = f32[16,128]{1,0:T(8,128)} all-reduce(%x), replica_groups={{0,1},{2,3},{4,5},{6,7}}, to_apply=%sum
  ROOT %next = (s32[]{:T(128)}, f32[16,128]{1,0:T(8,128)}) tuple(%round, %loop_reduce)
}

%condition (c: (s32[], f32[16,128])) -> pred[] {
  %c = (s32[]{:T(128)}, f32[16,128]{1,0:T(8,128)}) parameter(0)
  ROOT %more = pred[]{:T(512)} constant(true)
}

ENTRY %main (narrow: f32[16,24], wide: f32[16,128]) -> f32[16,128] {
  %narrow = f32[16,24]{1,0:T(8,128)} parameter(0)
  %wide = f32[16,128]{1,0:T(8,128)} parameter(1)
  %doubled = f32[16,24]{1,0:T(8,128)S(1)} fusion(%narrow), kind=kLoop, calls=%fused, metadata={op_name="jit(step)/stages/0/double" stack_frame_id=3}
  %prefetch = (f32[16,128]{1,0:T(8,128)S(1)}, f32[16,128]{1,0:T(8,128)}, u32[]{:S(2)}) copy-start(%wide)
  %there = f32[16,128]{1,0:T(8,128)S(1)} copy-done(%prefetch)
  %start = (bf16[2,8]{1,0:T(8,128)(2,1)}, f32[4]{0:T(128)}) all-reduce-start(%doubled, %there), replica_groups=[1,8]<=[8], to_apply=%sum
  %between = f32[16,24]{1,0:T(8,128)S(1)} fusion(%doubled), kind=kLoop, calls=%fused
  %end = (bf16[2,8]{1,0:T(8,128)(2,1)}, f32[4]{0:T(128)}) all-reduce-done(%start)
  %gathered = f32[16,128]{1,0:T(8,128)S(1)} all-gather(%between), replica_groups=[2,4]<=[8], dimensions={1}
  %part = ((f32[16,128]{1,0:T(8,128)}), f32[8,128]{1,0:T(8,128)S(1)}, s32[]{:S(2)}) slice-start(%wide), slice={[0:8], [0:128]}
  %permuted = (f32[16,128]{1,0:T(8,128)S(1)}, f32[16,128]{1,0:T(8,128)S(1)}, u32[]{:S(2)}, u32[]{:S(2)}) collective-permute-start(%gathered), source_target_pairs={{0,1},{1,0}}
  %shard = f32[4]{0:T(128)} reduce-scatter(%narrow), replica_groups=mesh['axis_0'=2,'axis_1'=4] {'axis_1'}, to_apply=%sum
  %init = (s32[]{:T(128)}, f32[16,128]{1,0:T(8,128)}) tuple(%zero, %wide)
  %loop = (s32[]{:T(128)}, f32[16,128]{1,0:T(8,128)}) while(%init), condition=%condition, body=%body, backend_config={"known_trip_count":{"n":"5"}}
  ROOT %result = f32[16,128]{1,0:T(8,128)} get-tuple-element(%loop), index=1
}
"""


@pytest.fixture(scope="module")
def program():
    return hlo.parse(TEXT)


def test_a_loop_runs_its_body_as_often_as_it_goes_round(program):
    times = hlo.times_run(*program)
    assert times["main"] == 1
    assert times["body"] == 5
    assert times["fused"] == 2


def test_tiles_pad_narrow_arrays(program):
    module, _ = program
    narrow = module["main"][0].results[0]
    assert narrow.size == 4 * 16 * 24
    assert narrow.padded == 4 * 16 * 128
    assert not narrow.on_chip


def test_only_main_memory_counts_as_traffic(program):
    moved = {
        found.instruction.name: (found.size, found.padded)
        for found in hlo.memory_traffic(*program)
    }
    # The operand alone: the result stays on the chip.
    assert moved["doubled"] == (4 * 16 * 24, 4 * 16 * 128)
    # Reads main memory, and writes to the chip.
    assert moved["prefetch"] == (4 * 16 * 128, 4 * 16 * 128)
    # The slice alone, not what it is cut from.
    assert moved["part"][0] == 4 * 8 * 128
    assert not {"there", "end", "between", "gathered"} & moved.keys()
    # In a loop of five rounds, operand and result.
    assert moved["loop_reduce"][0] == 5 * 2 * 4 * 16 * 128


def test_a_fusion_reads_and_writes_the_slices_alone_that_it_takes():
    text = """\
%inner (q: f32[64,128], at: s32[]) -> f32[8,128] {
  %q = f32[64,128]{1,0:T(8,128)} parameter(0)
  %at = s32[]{:T(128)} parameter(1)
  ROOT %cut = f32[8,128]{1,0:T(8,128)} dynamic-slice(%q, %at), dynamic_slice_sizes={8,128}
}

%fused (i: s32[], p: f32[64,128], whole: f32[16,128], old: f32[64,128]) -> f32[64,128] {
  %i = s32[]{:T(128)} parameter(0)
  %p = f32[64,128]{1,0:T(8,128)} parameter(1)
  %whole = f32[16,128]{1,0:T(8,128)} parameter(2)
  %old = f32[64,128]{1,0:T(8,128)} parameter(3)
  %flat = f32[64,128]{1,0:T(8,128)} bitcast(%p)
  %a = f32[8,128]{1,0:T(8,128)} slice(%flat), slice={[0:8], [0:128]}
  %b = f32[8,128]{1,0:T(8,128)} fusion(%p, %i), kind=kLoop, calls=%inner
  %c = f32[8,128]{1,0:T(8,128)} slice(%whole), slice={[0:8], [0:128]}
  %sum = f32[8,128]{1,0:T(8,128)} add(%a, %b)
  %all = f32[16,128]{1,0:T(8,128)} negate(%whole)
  %new = f32[64,128]{1,0:T(8,128)} dynamic-update-slice(%old, %sum, %i)
  ROOT %again = f32[64,128]{1,0:T(8,128)} bitcast(%new)
}

ENTRY %main (n: s32[], x: f32[64,128], y: f32[16,128], z: f32[64,128]) -> f32[64,128] {
  %n = s32[]{:T(128)S(6)} parameter(0)
  %x = f32[64,128]{1,0:T(8,128)} parameter(1)
  %y = f32[16,128]{1,0:T(8,128)} parameter(2)
  %z = f32[64,128]{1,0:T(8,128)} parameter(3)
  ROOT %result = f32[64,128]{1,0:T(8,128)} fusion(%n, %x, %y, %z), kind=kLoop, calls=%fused
}
"""
    (found,) = hlo.memory_traffic(*hlo.parse(text))
    # Two slices of x, all of y, nothing of z; and the update of it.
    assert found.size == 4 * 128 * (8 + 8 + 16 + 8)
    # Wherever the root is printed.
    lines = text.splitlines()
    root = next(line for line in lines if "ROOT %again" in line)
    lines.remove(root)
    lines.insert(
        lines.index(
            "%fused (i: s32[], p: f32[64,128], whole: f32[16,128], old: f32[64,128]) -> f32[64,128] {"
        )
        + 1,
        root,
    )
    assert (
        hlo.memory_traffic(*hlo.parse("\n".join(lines)))[0].size == found.size
    )
    # A root may have several results itself.
    several = text.replace(
        "%result = f32[64,128]{1,0:T(8,128)} fusion",
        "%result = (f32[64,128]{1,0:T(8,128)}, f32[4]{0:T(128)}) fusion",
    )
    (found,) = hlo.memory_traffic(*hlo.parse(several))
    assert found.size == 4 * 128 * (8 + 8 + 16 + 64) + 4 * 4
    # An update that something else reads is no update in place.
    text = text.replace("bitcast(%new)", "negate(%new)")
    (found,) = hlo.memory_traffic(*hlo.parse(text))
    assert found.size == 4 * 128 * (8 + 8 + 16 + 64 + 64)


def test_an_operand_that_a_nested_fusion_gives_on_is_read_whole():
    """As the TPU compiler writes the matrix of a product."""
    text = """\
%inner (q: f32[16,128]) -> f32[16,128] {
  %q = f32[16,128]{1,0:T(8,128)} parameter(0)
  ROOT %same = f32[16,128]{1,0:T(8,128)} bitcast(%q)
}

%fused (p: f32[8,16], w: f32[16,128]) -> f32[8,128] {
  %p = f32[8,16]{1,0:T(8,128)} parameter(0)
  %w = f32[16,128]{1,0:T(8,128)} parameter(1)
  %matrix = f32[16,128]{1,0:T(8,128)} fusion(%w), kind=kLoop, calls=%inner
  ROOT %product = f32[8,128]{1,0:T(8,128)} convolution(%p, %matrix), dim_labels=bf_io->bf
}

ENTRY %main (x: f32[8,16], y: f32[16,128]) -> f32[8,128] {
  %x = f32[8,16]{1,0:T(8,128)} parameter(0)
  %y = f32[16,128]{1,0:T(8,128)} parameter(1)
  ROOT %result = f32[8,128]{1,0:T(8,128)} fusion(%x, %y), kind=kOutput, calls=%fused
}
"""
    (found,) = hlo.memory_traffic(*hlo.parse(text))
    assert found.size == 4 * (8 * 16 + 16 * 128 + 8 * 128)


def test_an_instruction_knows_what_it_was_in_jax(program):
    module, _ = program
    assert module["main"][2].source == "jit(step)/stages/0/double"


def test_collectives_are_counted_by_kind_and_group(program):
    found = collectives.collectives(*program, devices=8)
    once, in_loop = 2 * 2 * 8 + 4 * 4, 4 * 16 * 128
    assert set(found) == {
        "all-reduce",
        "all-gather",
        "collective-permute",
        "reduce-scatter",
    }
    assert found["collective-permute"].size == in_loop
    assert found["reduce-scatter"].sent == 3 * 4 * 4
    reduced = found["all-reduce"]
    assert reduced.count == 1 + 5
    assert reduced.size == once + 5 * in_loop
    # A ring over 8 devices, and five over 2.
    assert reduced.sent == once * 2 * 7 / 8 + 5 * in_loop * 2 * 1 / 2
    assert reduced.overlapped == 1
    gathered = found["all-gather"]
    assert (gathered.count, gathered.overlapped) == (1, 0)
    assert gathered.sent == gathered.size * 3 / 4


@pytest.mark.parametrize(
    ("kind", "sent"),
    [
        ("reduce-scatter", 7 * 64),
        ("all-to-all", 64 * 7 / 8),
        ("collective-permute", 64),
    ],
)
def test_every_kind_sends_what_it_must(kind, sent):
    text = (
        "ENTRY %main (x: f32[16]) -> f32[16] {\n"
        "  %x = f32[16]{0} parameter(0)\n"
        f"  ROOT %y = f32[16]{{0}} {kind}(%x), replica_groups={{}}\n"
        "}\n"
    )
    found = collectives.collectives(*hlo.parse(text), devices=8)
    assert found[kind].sent == sent


def test_a_cpu_module_without_tiles_is_read_as_well():
    text = (
        "ENTRY main (x: f32[4,8]) -> f32[4,8] {\n"
        "  %x = f32[4,8]{1,0} parameter(0)\n"
        "  %y = (f32[3], bf16[10]) all-reduce(%x, %x), to_apply=%sum\n"
        "  ROOT %z = f32[4,8]{1,0} add(%x, %all-gather)\n"
        "}\n"
    )
    found = collectives.collectives(*hlo.parse(text), devices=2)
    assert found == {"all-reduce": collectives.Collective(1, 32, 32.0, 0)}


def test_parts_of_one_collective_count_once_and_overlap():
    """As the TPU compiler writes a gather beside a convolution."""
    part = (
        "  %g{n} = bf16[64]{{0}} all-gather(%p{n}), channel_id=7, "
        "replica_groups=[1,8]<=[8], dimensions={{0}}\n"
    )
    fusions = "".join(
        f"%async_collective_fusion.{n} (p{n}: bf16[8]) -> bf16[64] {{\n"
        f"  %p{n} = bf16[8]{{0}} parameter(0)\n{part.format(n=n)}}}\n\n"
        for n in (1, 2)
    )
    text = (
        fusions + "%all-reduce-scatter.1 (p3: f32[64]) -> f32[8] {\n"
        "  %p3 = f32[64]{0} parameter(0)\n"
        "  %r = f32[64]{0} all-reduce(%p3), channel_id=8, "
        "replica_groups=[1,8]<=[8], to_apply=%sum\n"
        "  ROOT %s = f32[8]{0} dynamic-slice(%r, %zero), "
        "dynamic_slice_sizes={8}\n}\n\n"
        "ENTRY %main (x: bf16[8], y: f32[64]) -> f32[8] {\n"
        "  %x = bf16[8]{0} parameter(0)\n"
        "  %y = f32[64]{0} parameter(1)\n"
        "  %a = bf16[64]{0} fusion(%x), calls=%async_collective_fusion.1\n"
        "  %b = bf16[64]{0} fusion(%x), calls=%async_collective_fusion.2\n"
        "  ROOT %c = f32[8]{0} fusion(%y), calls=%all-reduce-scatter.1\n}\n"
    )
    found = collectives.collectives(*hlo.parse(text), devices=8)
    assert found == {
        "all-gather": collectives.Collective(1, 128, 128 * 7 / 8, 1),
        "reduce-scatter": collectives.Collective(1, 32, 32 * 7.0, 0),
    }

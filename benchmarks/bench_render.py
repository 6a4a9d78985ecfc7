"""Scenes a second of the renderer: `pytest benchmarks/bench_render.py` (pytest-benchmark prints the table)."""

from tabletop.render import render
from tabletop.scene import SceneDistribution


def test_render_256_scenes(benchmark):
    distribution = SceneDistribution(card=0.18, second=0.12, occluder=0.1)
    scenes = [distribution.draw(0, "test", i) for i in range(256)]
    benchmark.extra_info["scenes"] = len(scenes)
    result = benchmark.pedantic(render, args=(scenes,), rounds=5, warmup_rounds=1)
    assert result.pixels.shape == (256, 3, 64, 64)

"""Specs for tests: small, linked, with made-up digests."""

from pipeline.regions import load_parts
from pipeline.spec import MotionSpec, PipelineSpec, RegionsSpec, SegmentSpec, SemanticSpec


def pipeline_spec(padding: float = 0.1, stride: int = 2, segment_weights: str = "a" * 64) -> PipelineSpec:
    segment = SegmentSpec(
        model="sapiens-seg", config={"depth": 1}, weights=segment_weights, label_size=(24, 20),
        mean=(1.0, 2.0, 3.0), std=(1.0, 1.0, 1.0), stride=stride,
    )  # fmt: skip
    regions = RegionsSpec(reads={"segment": segment.key}, parts=load_parts().regions, padding=padding)
    reads = {"segment": segment.key, "regions": regions.key}
    semantic = SemanticSpec(reads=reads, model="videomaev2", config={"depth": 1}, weights="b" * 64, stride=8)
    motion = MotionSpec(model="manet", config={"width": 16}, weights="c" * 64, short_side=96, crop=96)
    return PipelineSpec("test", (segment, regions, semantic, motion))

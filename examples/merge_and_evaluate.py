"""Merge a study's experts half and half, and score the merge on held-out prompts.

python examples/merge_and_evaluate.py STUDY.yaml OUT_DIR
"""

import sys

import safemerge

study = safemerge.load_study(sys.argv[1])
weights = {expert.name: 0.5 for expert in study.spec.experts}
recipe = safemerge.Recipe(
    base=study.spec.base,
    experts=study.spec.experts,
    method={"name": "task_arithmetic", "weights": weights},
)
merged = safemerge.merge(recipe, sys.argv[2])
result = safemerge.evaluate(study, model=merged.path, progress=print)
for name, found in result.metrics.items():
    print(f"{name}: {found.value} [{found.low}, {found.high}], n = {found.n}")

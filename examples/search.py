"""Search merges of a study, list the front, write its knee to disk; a second run resumes.

python examples/search.py STUDY.yaml OUT_DIR
"""

import sys

import safemerge

study = safemerge.load_study(sys.argv[1])
run = safemerge.search(study, resume=True, progress=print)
metrics = [objective.metric for objective in study.spec.objectives]
for point in run.front:
    print(point["label"], {metric: point[metric] for metric in metrics})
if run.knee is not None:
    safemerge.export(run, "knee", sys.argv[2])
print("report:", run.report())

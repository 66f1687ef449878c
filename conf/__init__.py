"""The config tree, and the joint of the two wings.

YAML files by group, and the typed schema that they must fit (`conf.schema`). Beside it lie the other modules that know
both wings: `conf.checks` (settings that must fit one another), `conf.evaluation` (evaluators and their images),
`conf.introduction` (what a run says of itself) and `conf.errors` (a mistaken setting as a sentence).
"""

"""The config tree: YAML files by group, and the typed schema that they must fit (`conf.schema`)."""

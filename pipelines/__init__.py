"""This project's dataflow modules, each with a `flow` or a job to run. The machinery is in `headrace.pipelines`."""

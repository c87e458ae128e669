"""From YAML to figures: experiments, planning, results, probes, claims, report."""

"""Programs a person runs: data sets, protocols, the resumable study, figures, the report."""

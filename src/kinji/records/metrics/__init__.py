"""What decides each claim: functions from a tidy table to an estimate, one module per experiment."""

"""Records, tidy tables, claims and verdicts: everything between an experiment and a figure."""

from kinji.records.claims import Claim, Verdict, judge, judge_all, load_claims, verdict_table
from kinji.records.estimates import Estimate, exact, growth_exponent, median_estimate
from kinji.records.record import Record, RecordError, fingerprint, read_record, write_record
from kinji.records.tables import load_records, load_reference, load_table, tidy

__all__ = [
    "Claim",
    "Estimate",
    "Record",
    "RecordError",
    "Verdict",
    "exact",
    "fingerprint",
    "growth_exponent",
    "judge",
    "judge_all",
    "load_claims",
    "load_records",
    "load_reference",
    "load_table",
    "median_estimate",
    "read_record",
    "tidy",
    "verdict_table",
    "write_record",
]

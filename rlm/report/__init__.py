"""What a run looks like: report.html and the plots."""

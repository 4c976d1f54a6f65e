"""The report of a run or a grid: one HTML page that needs nothing but itself."""

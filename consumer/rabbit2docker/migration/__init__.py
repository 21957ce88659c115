"""Values of other charts for the same purpose, translated into those of the chart rabbit2docker."""

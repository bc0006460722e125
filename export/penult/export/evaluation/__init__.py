"""SVM, metrics, calibration, whitening, drift baseline and diagnosis."""

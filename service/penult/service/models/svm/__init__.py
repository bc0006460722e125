"""Score descriptors with a pickled scikit-learn SVM, without unpickling it."""

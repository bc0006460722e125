"""The labelling page: which photo to label next, the label file, and the classifier that learns meanwhile."""

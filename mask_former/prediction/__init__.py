"""From a trained model to results of pictures, videos and folders."""

"""Motion capture files: ASF/AMC and BVH, as recordings of the model's joints."""

"""Parts of every pass over a data set: its digest, a loader that resumes, and shards on disk."""

"""What a run is given to others with: an archive for a reviewer, and the statement of somebody who has verified it."""

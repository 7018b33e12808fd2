"""Ranks: the processes that train one setting together, one learner's batch each."""

"""How many machines a night needs, where, and when on demand: policy, simulator, notices, prices, fleets.

One picture of time runs through all of it: a *trace* says tick by tick how many spot machines each zone has and at
what price; the *policy* decides from what it has seen of one; the *simulator* plays it; a night plays the present.
"""

"""The risk service: limits, allotments and the kill switch.

Owns who may trade how much and which money is moved to which engine. Reads the execution feed and
never an order book. Orders ask this service nothing: an engine only spends what was allotted to it
before, so trading goes on while this service is away.
"""

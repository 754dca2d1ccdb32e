"""Traces: who decided, under which policy, on what data, because of which precedents, with what result."""

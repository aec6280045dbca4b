"""From files, or from a model that a user holds, to a Subject whose sites are verified."""

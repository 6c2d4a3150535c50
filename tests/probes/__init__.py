"""Small plugins that need what the contracts promise beyond the simple task, where no plugin of ours does: we try those themselves.

All keep the public contract, train and resume, and their numbers do not depend on how a batch is divided.
"""

"""The daemon's side of the pool.

Pure, no clock and no I/O: states, events, scheduler, policy, timers, machine.
Shell: pool performs what the machine decides, by process, transport, catalog and exchange.
"""

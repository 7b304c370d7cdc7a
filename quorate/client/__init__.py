"""The client: finds the leader, keeps a session, coalesces calls into frames, gives typed handles.

From the outside in: ``sync`` is ``database`` for threads; ``database`` and ``kv`` are the handles;
``client`` owns the loop turn and the timer; ``submitter``, ``session``, ``querier`` and ``calls``
decide what to send and complete futures, without doing any I/O; ``connection`` and ``routing``
keep a link to the leader; ``channel`` moves frames. Never imports storage or consensus.
"""

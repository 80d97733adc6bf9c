package raftstore

// attacks is the table, in the order of docs/attacks.md.
var attacks = []attack{
	{"a server is restarted on an old copy of its disk", TestStockOldDisk, TestOursOldDisk, "", []string{"kds/node.TestOldDiskHasNothingToActOn"}},
	{"a server is wiped and votes again at its address", TestStockWipedNode, TestOursWipedNode, "", nil},
	{"a copy of a running server's disk is started beside it", TestStockClone, TestOursClone, "", []string{"kds/node.TestCloneAlarm", "kds/node.TestCloneOfTheLeader"}},
	{"archives swapped: one server starts on another's", TestStockSwappedDisk, TestOursSwappedArchive, "", []string{"kds/node.TestRecoveryReportsBrokenArchives", "raftstore/history.TestArchiveAttacks"}},
	{"an archive truncated", TestStockTruncatedDisk, TestOursTruncatedArchive, "", []string{"kds/node.TestRecoveryRefuses", "raftstore/history.TestTornFiles"}},
	{"an archive reordered", TestStockReorderedDisk, TestOursReorderedArchive, "", []string{"raftstore/history.TestArchiveAttacks"}},
	{"archives mixed: an entry of another cluster is put in", TestStockMixedDisk, TestOursMixedArchive, "", []string{"raftstore/history.TestArchiveAttacks"}},
	{"a snapshot edited on disk", TestStockEditedSnapshot, TestOursEditedSnapshot, "", nil},
	{"a leader is alone with a nonvoter", TestStockNonvoterAcks, TestOursNonvoterAcks, "", []string{"raftstore.TestNonvoterAcksDoNotCount"}},
	{"answers sent before the read began are let through when it begins", TestStockOldAcks, TestAcksOfOlderRequestsDoNotCount, "SafeRead waits: every request says when it was sent", nil},
	{"a leader that is leaving counts itself", TestStockLeavingLeader, TestLeaderBeingRemovedDoesNotCountItself, "SafeRead refuses: a majority of those that stay", nil},
	{"a new leader is read before it has committed", TestStockNewLeader, TestNewLeaderCommitsBeforeItReads, "SafeRead waits for an entry of the leader's own term", nil},
	{"addresses lead to another server", TestStockRedirected, TestOursRedirected, "", []string{"kds/node.TestAddressOfAnotherServer"}},
	{"a heartbeat is stopped halfway while its receiver votes in the next term", TestStockHeartbeatRace, TestOursHeartbeatRace, "", nil},
	{"a commit index goes beyond what its message has matched", TestStockCommitBeyond, TestCommitIndexIsClampedToWhatWasMatched, "clamped to the last entry that the message itself has matched", nil},
	{"a vote is asked for again from an older disk", TestStockRepeatedVote, TestOursRepeatedVote, "", nil},
	{"a snapshot arrives late", TestStockLateSnapshot, TestOursLateSnapshot, "", nil},
	{"a snapshot arrives late, with an older configuration", TestStockLateConfiguration, TestOursLateConfiguration, "", nil},
	{"an old majority is kept alive behind a partition after a recovery", TestStockOldMajority, TestOursOldMajority, "", []string{"kds/node.TestOldEpochBehindAPartition", "kds/client.TestRolledBackEpoch", "attest/ratls.TestDiversionOfEvidence"}},
	{"TimeoutNow from anybody", TestStockTimeoutNow, TestTimeoutNowOnlyFromTheLeader, "refused: only the leader that is followed may ask for it, on its own channel", nil},
	{"what is for the next leader is held back while leadership is handed over", TestStockHeldBackTransfer, TestOursHeldBackTransfer, "", nil},
	{"an error text in the place of a pre-vote", TestStockPreVoteText, TestOursPreVoteText, "", nil},
	{"a vote is asked for without an id", TestStockVoteWithoutID, TestHeaderOfAnotherServerIsRefused, "refused: the header is the identity of the channel", []string{"kds/node.TestRaftChannelsAreForMembersOnly"}},
	{"entries are sent in the leader's name", TestStockForgedEntries, TestHeaderOfAnotherServerIsRefused, "refused: the header is the identity of the channel", []string{"raftstore.TestRemovedServerIsOutForEver", "kds/node.TestRaftChannelsAreForMembersOnly"}},
}

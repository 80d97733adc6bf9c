package raftstore

import "fmt"

// wireForward carries proposals to the leader. Seq counts the frames of the
// connection from 1, and the outcomes come back in that order.
type wireForward struct {
	_       struct{} `cbor:",toarray"`
	Header  wireHeader
	Seq     uint64
	Entries [][]byte
}

// wireAsk asks the leader for a read index.
type wireAsk struct {
	_      struct{} `cbor:",toarray"`
	Header wireHeader
}

// outcomeCode says what became of a forwarded proposal or a question.
type outcomeCode uint8

// Zero is none of them: what nobody has filled in says nothing.
const (
	outcomeDone      outcomeCode = 1 // committed at Index in Term; or the read index
	outcomeNotLeader outcomeCode = 2 // this server does not lead: nothing was appended
	outcomeUnknown   outcomeCode = 3 // appended, and leadership was lost
	outcomeBusy      outcomeCode = 4 // the leader takes no more: nothing was appended
	outcomeHalted    outcomeCode = 5 // the leader's machine has halted: nothing was appended
)

// wireOutcome has Index and Term of the entry when it is done, and zero otherwise.
type wireOutcome struct {
	_     struct{} `cbor:",toarray"`
	Code  outcomeCode
	Index uint64
	Term  uint64
}

// check refuses what no leader says.
func (o wireOutcome) check() error {
	switch {
	case o.Code < outcomeDone || o.Code > outcomeHalted:
		return fmt.Errorf("%w: outcome %d", ErrPeer, o.Code)
	case o.Code == outcomeDone && (o.Index == 0 || o.Term == 0):
		return fmt.Errorf("%w: an outcome without a place in the log", ErrPeer)
	case o.Code != outcomeDone && (o.Index != 0 || o.Term != 0):
		return fmt.Errorf("%w: a place in the log for what is not there", ErrPeer)
	}
	return nil
}

// wireOutcomes answers the wireForward of the same Seq, entry by entry.
type wireOutcomes struct {
	_        struct{} `cbor:",toarray"`
	Seq      uint64
	Outcomes []wireOutcome
}

// wireIndex answers a wireAsk: with outcomeDone, what is applied up to Index is
// all that was committed before the question, in LeaderTerm. EntryTerm is the
// term of the entry at Index, 0 where the leader no longer has it.
type wireIndex struct {
	_          struct{} `cbor:",toarray"`
	Code       outcomeCode
	LeaderTerm uint64
	Index      uint64
	EntryTerm  uint64
}

func decodeForward(payload []byte, peer ServerID, seq uint64) ([][]byte, error) {
	var w wireForward
	if err := unmarshal(payload, &w); err != nil {
		return nil, fmt.Errorf("%w: forwarded proposals: %w", ErrPeer, err)
	}
	if _, err := w.Header.check(peer); err != nil {
		return nil, err
	}
	if w.Seq != seq {
		return nil, fmt.Errorf("%w: frame %d where %d is next", ErrPeer, w.Seq, seq)
	}
	if len(w.Entries) == 0 || len(w.Entries) > maxForwardEntries {
		return nil, fmt.Errorf("%w: %d proposals in one frame", ErrPeer, len(w.Entries))
	}
	total := 0
	for _, e := range w.Entries {
		if len(e) == 0 || len(e) > MaxEntry {
			return nil, fmt.Errorf("%w: a proposal of %d bytes", ErrPeer, len(e))
		}
		total += len(e)
	}
	if total > maxForwardBytes {
		return nil, fmt.Errorf("%w: %d bytes of proposals in one frame", ErrPeer, total)
	}
	return w.Entries, nil
}

func decodeOutcomes(payload []byte, seq uint64, entries int) ([]wireOutcome, error) {
	var w wireOutcomes
	if err := unmarshal(payload, &w); err != nil {
		return nil, fmt.Errorf("%w: outcomes: %w", ErrPeer, err)
	}
	if w.Seq != seq || len(w.Outcomes) != entries {
		return nil, fmt.Errorf("%w: outcomes of another frame", ErrPeer)
	}
	for _, o := range w.Outcomes {
		if err := o.check(); err != nil {
			return nil, err
		}
	}
	return w.Outcomes, nil
}

func decodeAsk(payload []byte, peer ServerID) error {
	var w wireAsk
	if err := unmarshal(payload, &w); err != nil {
		return fmt.Errorf("%w: question: %w", ErrPeer, err)
	}
	_, err := w.Header.check(peer)
	return err
}

func decodeIndex(payload []byte) (wireIndex, error) {
	var w wireIndex
	if err := unmarshal(payload, &w); err != nil {
		return wireIndex{}, fmt.Errorf("%w: read index: %w", ErrPeer, err)
	}
	zero := w.LeaderTerm == 0 && w.Index == 0 && w.EntryTerm == 0
	switch {
	case w.Code < outcomeDone || w.Code > outcomeHalted, w.Code == outcomeBusy, w.Code == outcomeUnknown:
		return wireIndex{}, fmt.Errorf("%w: answer %d to a question", ErrPeer, w.Code)
	case w.Code == outcomeDone && (w.LeaderTerm == 0 || w.Index == 0 || w.EntryTerm > w.LeaderTerm):
		return wireIndex{}, fmt.Errorf("%w: a read index without a place in the log", ErrPeer)
	case w.Code != outcomeDone && !zero:
		return wireIndex{}, fmt.Errorf("%w: a read index of a server that does not lead", ErrPeer)
	}
	return w, nil
}

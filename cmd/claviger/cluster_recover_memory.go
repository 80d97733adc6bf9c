package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"

	"github.com/claviger/claviger/cmd/internal/cli"
	"github.com/claviger/claviger/kds/api"
)

// epochMemory is what an operator remembers beside a key: per cluster the highest epoch ever signed, by which statement and for
// which enclave, and the highest version of the node policy ever seen. An operator who forgets signs an epoch twice, and then two enclaves open
// it: see raftstore/model, "operator signs an epoch twice".
type epochMemory struct {
	Clusters []rememberedEpoch `json:"clusters"`
}

type rememberedEpoch struct {
	ClusterID  api.ID `json:"cluster_id"`
	Epoch      uint64 `json:"epoch"`
	Statement  api.ID `json:"statement_sha256"`
	NodePolicy uint64 `json:"node_policy_version"`
	Enclave    api.ID `json:"enclave"`
}

const maxMemoryFile = 1 << 20

// memoryFile lies beside the key.
func memoryFile(key string) string { return key + ".epochs" }

func readMemory(s *cli.Streams, key string) (*epochMemory, error) {
	var m epochMemory
	raw, err := s.ReadFile(memoryFile(key), maxMemoryFile)
	if _, usage := errors.AsType[*cli.UsageError](err); usage || errors.Is(err, fs.ErrNotExist) {
		return &m, nil // nothing has been signed with this key here
	}
	if err != nil {
		return nil, err
	}
	if err := api.DecodeJSON(raw, maxMemoryFile, &m); err != nil {
		return nil, fmt.Errorf("%s does not say which epochs this key has signed; restore it before you sign: %w", memoryFile(key), err)
	}
	return &m, nil
}

// allow refuses what this key must not sign: an epoch that is not above the highest signed, unless it is the very same
// statement; a node policy below one that was seen; and a second enclave while the first may have opened the epoch that it was
// signed for, which a history of an earlier epoch (source) does not show: unless the operator says that it has ended.
func (m *epochMemory) allow(r rememberedEpoch, source uint64, ended []string) error {
	for _, old := range m.Clusters {
		switch {
		case old.ClusterID != r.ClusterID:
		case r.Epoch < old.Epoch, r.Epoch == old.Epoch && r.Statement != old.Statement:
			return fmt.Errorf("this key has signed epoch %d of this cluster before, in another statement: an epoch is signed once; use --epoch %d or higher, if that one was never opened",
				old.Epoch, old.Epoch+1)
		case r.NodePolicy < old.NodePolicy:
			return fmt.Errorf("this key has seen version %d of the node policy, and that archive has version %d: it is an old copy", old.NodePolicy, r.NodePolicy)
		case source < old.Epoch && !old.Enclave.IsZero() && old.Enclave != r.Enclave && !namesEnclave(ended, old.Enclave):
			return fmt.Errorf("this key has signed epoch %d for another enclave, which may have opened it and serve in it, and what you continue is of epoch %d. "+
				"Recover from what that one has made; or see to it that it runs no more, and say so with --ended %.16s", old.Epoch, source, old.Enclave)
		}
	}
	return nil
}

// namesEnclave reports whether an id is in a list, by minRead digits of it or more.
func namesEnclave(list []string, id api.ID) bool {
	return slices.ContainsFunc(list, func(name string) bool { return len(name) >= minRead && strings.HasPrefix(id.String(), name) })
}

// remember writes the memory before the signature leaves this process.
func (m *epochMemory) remember(key string, r rememberedEpoch) error {
	m.Clusters = slices.DeleteFunc(m.Clusters, func(old rememberedEpoch) bool { return old.ClusterID == r.ClusterID })
	m.Clusters = append(m.Clusters, r)
	raw, err := json.MarshalIndent(m, "", "  ")
	if err != nil {
		return err
	}
	return replaceFile(memoryFile(key), append(raw, '\n'))
}

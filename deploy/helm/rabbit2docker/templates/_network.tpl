{{- /* Those of a list of networks that are of IPv4, or of IPv6, as JSON. Takes a list: the networks, and 4 or 6. */}}
{{- define "rabbit2docker.ofVersion" -}}
{{- $version := last . }}
{{- $found := list }}
{{- range first . }}
{{- if eq (contains ":" .) (eq $version 6) }}
{{- $found = append $found . }}
{{- end }}
{{- end }}
{{- $found | uniq | toJson }}
{{- end }}

{{- /* Rules for outgoing traffic. Takes a list: the root, and the values of a policy. */}}
{{- define "rabbit2docker.egressRules" -}}
{{- $root := first . }}
{{- $values := last . -}}
# Names are resolved by servers inside of the cluster.
- ports:
    - {port: 53, protocol: UDP}
    - {port: 53, protocol: TCP}
{{- $closed := concat $root.Values.networkPolicy.metadataAddresses $values.closedAddresses }}
{{- if eq $values.egressTo "public" }}
{{- $closed = concat (list "10.0.0.0/8" "172.16.0.0/12" "192.168.0.0/16" "100.64.0.0/10" "127.0.0.0/8" "169.254.0.0/16" "fc00::/7" "fe80::/10" "64:ff9b::/96") $closed }}
{{- end }}
{{- if ne $values.egressTo "none" }}
- to:
    {{- if eq $values.egressTo "all" }}
    # Some policy engines count no pod among the addresses.
    - namespaceSelector: {}
    {{- end }}
    - ipBlock:
        cidr: 0.0.0.0/0
        except: {{ include "rabbit2docker.ofVersion" (list $closed 4) }}
    - ipBlock:
        cidr: ::/0
        except: {{ include "rabbit2docker.ofVersion" (list $closed 6) }}
{{- end }}
{{- with $values.egress }}
{{ include "rabbit2docker.evaluated" (list $root .) }}
{{- end }}
{{- end }}

{{- /* Parts of pods that all components have. Most take a list: the root, and the values of the component. */}}

{{- /* Fields of a pod's specification that operators set, as far as they are set. */}}
{{- define "rabbit2docker.podFields" -}}
{{- $values := index . 1 }}
{{- $fields := dict }}
{{- range $name := list "priorityClassName" "nodeSelector" "tolerations" "topologySpreadConstraints" "affinity" }}
{{- with get $values $name }}
{{- $_ := set $fields $name . }}
{{- end }}
{{- end }}
{{- with mergeOverwrite $fields (deepCopy (default dict $values.extraPodSpec)) }}
{{- tpl (toYaml .) (first $) }}
{{- end }}
{{- end }}

{{- /* A list or mapping of values, in which templates are evaluated. */}}
{{- define "rabbit2docker.evaluated" -}}
{{- with index . 1 }}
{{- tpl (toYaml .) (first $) }}
{{- end }}
{{- end }}

{{- /* Environment variables: a list as in a pod, or a mapping, which several files of values can add to. */}}
{{- define "rabbit2docker.extraEnv" -}}
{{- $variables := index . 1 }}
{{- if kindIs "map" $variables }}
{{- $list := list }}
{{- range $name, $value := $variables }}
{{- if kindIs "map" $value }}
{{- $list = append $list (merge (dict "name" $name) $value) }}
{{- else }}
{{- $list = append $list (dict "name" $name "value" (toString $value)) }}
{{- end }}
{{- end }}
{{- $variables = $list }}
{{- end }}
{{- include "rabbit2docker.evaluated" (list (first .) $variables) }}
{{- end }}

{{- /* A variable from a key of a Secret. Takes a list: name of the variable, name of the Secret, key. */}}
{{- define "rabbit2docker.secretVariable" -}}
- name: {{ index . 0 }}
  valueFrom:
    secretKeyRef:
      name: {{ index . 1 | quote }}
      key: {{ index . 2 | quote }}
{{- end }}

{{- /* Replicas go to different nodes if possible. Takes a list: the root, and the name of the component. */}}
{{- define "rabbit2docker.spread" -}}
podAntiAffinity:
  preferredDuringSchedulingIgnoredDuringExecution:
    - weight: 100
      podAffinityTerm:
        topologyKey: kubernetes.io/hostname
        labelSelector:
          matchLabels:
            {{- include "rabbit2docker.selectorLabels" (first .) | nindent 12 }}
            app.kubernetes.io/component: {{ index . 1 }}
{{- end }}

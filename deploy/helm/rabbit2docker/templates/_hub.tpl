{{- define "rabbit2docker.hubName" -}}
{{- include "rabbit2docker.fullname" . }}-hub
{{- end }}

{{- /* The Service. Its name does not begin with that of the release: Kubernetes makes variables of the names of Services,
such as RABBIT2DOCKER_HUB_PORT, in all pods of the namespace. */}}
{{- define "rabbit2docker.hubServiceName" -}}
hub-{{ include "rabbit2docker.fullname" . }}
{{- end }}

{{- define "rabbit2docker.hubAuth" -}}
{{- get (default dict .Values.config.hub) "auth" | default "jupyterhub" }}
{{- end }}

{{- /* The path that all URLs of the service start with; it ends with a slash. */}}
{{- define "rabbit2docker.hubPath" -}}
{{- $jupyterhub := .Values.hubService.jupyterhub }}
{{- $path := "/" }}
{{- with get (default dict .Values.config.hub) "base_url" }}
{{- $path = . }}
{{- else }}
{{- if eq (include "rabbit2docker.hubAuth" .) "jupyterhub" }}
{{- $path = printf "%s/services/%s/" ($jupyterhub.baseUrl | trimSuffix "/") $jupyterhub.serviceName }}
{{- end }}
{{- end }}
{{- printf "%s/" ($path | trimSuffix "/") }}
{{- end }}

{{- /* The settings of the hub's service: `config` without what consumers alone read. */}}
{{- define "rabbit2docker.hubSettings" -}}
{{- include "rabbit2docker.checkConfig" . }}
{{- if and .Values.hubService.autoscaling.enabled (not .Values.hubService.database.existingSecret) }}
{{- fail "hubService.autoscaling is enabled, but SQLite allows one instance. Set hubService.database.existingSecret to a Secret with the URL of a PostgreSQL." }}
{{- end }}
{{- if and (gt (int .Values.hubService.replicas) 1) (not .Values.hubService.database.existingSecret) }}
{{- fail "hubService.replicas is more than 1, but SQLite allows one instance. Set hubService.database.existingSecret to a Secret with the URL of a PostgreSQL." }}
{{- end }}
{{- $hub := dict "bind" "0.0.0.0:8585" }}
{{- if not .Values.hubService.database.existingSecret }}
{{- $_ := set $hub "store_url" "sqlite:////data/builds.sqlite" }}
{{- $_ := set $hub "store_bytes" 3000000000 }}
{{- end }}
{{- $shared := omit (deepCopy .Values.config) "executor" "local" "docker" "kubernetes" "build_logs" "http" "limits" }}
{{- mergeOverwrite (dict "instance" (include "rabbit2docker.instance" .) "hub" $hub) $shared | toYaml }}
{{- end }}
